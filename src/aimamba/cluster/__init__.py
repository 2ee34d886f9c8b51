"""Work that a Ray cluster does. Ray is imported when a cluster is asked for, and not before."""
