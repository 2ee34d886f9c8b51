"""What the small studies of several tests share: a model that trains in a moment."""

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
