"""The format `png`: a tar archive per shard and, once it is committed, each mask as a file below `masks/`."""

from maskfleet.jobs.masks.tar import Tar


class Loose(Tar):
    """PNG files in a tar archive per shard, exported as loose files after the commit."""

    loose = True


FORMAT = Loose()
