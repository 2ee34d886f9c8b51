"""Models on the Hugging Face hub: which repository, which version of it, and where its files are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from aimamba.checkpoints.weights import first_line
from aimamba.config import check
from aimamba.errors import CheckpointError, ConfigError, suggest

_FILES = "*.json", "*.safetensors"


class HubArguments(TypedDict, total=False):
    """Keyword arguments of ``from_pretrained`` that say where to look, as Hugging Face's libraries name them.

    Attributes:
        revision: Branch, tag or commit of a hub repository; by default its main branch.
        cache_dir: Where downloads are kept; by default the hub's own cache.
        local_files_only: Take what was downloaded before, without asking the hub.
        token: Access token of a private repository, ``True`` for the one stored on this machine, ``False`` for none.
        subfolder: Folder of the model inside the repository, or inside the folder.
    """

    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None
    subfolder: str | None


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where to look for a model, see ``HubArguments``.

    Raises:
        ConfigError: ``subfolder`` leads out of the model's folder.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    subfolder: str | None = None

    def __post_init__(self) -> None:
        inside = PurePosixPath(self.subfolder or ".")
        check(
            not inside.is_absolute() and ".." not in inside.parts,
            f"subfolder must lie inside of the model's folder, got {self.subfolder!r}",
        )

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Hub":
        """Return the place that keyword arguments of ``from_pretrained`` describe.

        Raises:
            ConfigError: There is no such argument.
        """
        known = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in known:
                raise ConfigError(f"from_pretrained takes no {name}{suggest(name, known)}")
        return cls(**arguments)

    def elsewhere(self) -> "Hub":
        """Return where to look for a second model: in the same cache, but revision and folder are the first one's."""
        return replace(self, revision=None, subfolder=None)


def download(source: str, hub: Hub) -> Path:
    """Download the JSON and safetensors files of a repository, unless they are in the cache; return their folder.

    Raises:
        CheckpointError: There is no such repository or revision, it is private, or the hub cannot be reached.
    """
    at = f" at revision {hub.revision}" if hub.revision else ""
    inside = f"{hub.subfolder.strip('/')}/" if hub.subfolder else ""
    try:
        # The user chooses the repository and its version; no code in it is run.
        folder = snapshot_download(
            source,
            revision=hub.revision,
            cache_dir=hub.cache_dir,
            local_files_only=hub.local_files_only,
            token=hub.token,
            allow_patterns=[f"{inside}{name}" for name in _FILES],
        )
        return Path(folder)
    except HFValidationError as error:
        raise CheckpointError(f"{source}: no such folder, and not a hub id: {first_line(error)}") from error
    except LocalEntryNotFoundError as error:
        if hub.local_files_only:
            raise CheckpointError(
                f"{source}: no such folder, and not downloaded yet{at}; leave out local_files_only to download it"
            ) from error
        raise CheckpointError(
            f"{source}: no such folder, and the hub cannot be reached to look it up there{at}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{source}: no such folder, and the download from the hub{at} failed: {first_line(error)}"
        ) from error
