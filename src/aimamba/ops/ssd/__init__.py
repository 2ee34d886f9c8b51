"""The state-space duality (SSD) operator of Mamba-2, in several forms with one signature."""
