"""Upload a saved pipeline to the hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from aimamba.checkpoints.weights import first_line
from aimamba.errors import CheckpointError


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder to a model repository, which is made if there is none; see ``Pipeline.push_to_hub``.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: The id is none, the token is missing or not allowed to write, or the hub cannot be reached.
    """
    try:
        api = HfApi(token=token)
        name = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model").repo_id
        if revision is not None and not create_pr:
            api.create_branch(name, branch=revision, exist_ok=True)
        message = commit_message or "Upload an AiM pipeline"
        done = api.upload_folder(
            folder_path=folder, repo_id=name, commit_message=message, revision=revision, create_pr=create_pr
        )
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id}: not a hub id: {first_line(error)}") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repo_id}: the upload to the hub failed: {first_line(error)}") from error
    return str(done.pr_url if create_pr and done.pr_url else done.commit_url)
