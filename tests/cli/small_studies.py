"""What the small studies of several tests share: a model that trains in a moment, images, and how it is judged."""

DATA = """
budget = 8

[data]
source = "avatars:planets,sprouts"
size = 16
per_class = 10
held_out_per_class = 5
"""

JUDGING = """
checkpoint_every = 1

[judging]
reference = "avatars-16:planets,sprouts:held-out:10"
samples = 10
scales = [1.0, 2.0]
"""

SMALL = """
[model]
width = 16
num_blocks = 2
state_size = 4
head_width = 8
adaln_groups = 2

[task]
sheet_pictures = 1
sheet_cfg_scale = 1

[fit]
batch_size = 4
lr = 1e-2
"""
