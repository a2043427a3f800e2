"""Blocks that the Triton tests force, as plain data: triton_small.py uses them, triton_compile.py compiles them."""

SMALL = (
    {"tile_b": 16, "tile_n": 32, "tile_d": 16, "direct_b": 16, "direct_n": 32, "direct_d": 16}
    | {"pack_rows": 16, "pack_d": 32, "centre_d": 16, "rows": 16, "row_d": 32, "together": 8, "sort": 64}
    | {"select_rows": 16, "select": 64, "slab_block": 64, "list_block": 64, "loss_block": 16, "words": 1 << 12}
)
WIDE = (  # a hundred rows at a time: five times faster in the interpreter, for tests that are about the data
    {"tile_b": 128, "tile_n": 64, "tile_d": 64, "direct_b": 32, "direct_n": 64, "direct_d": 32}
    | {"pack_rows": 128, "pack_d": 64, "centre_d": 64, "rows": 128, "row_d": 64, "together": 16}
    | {"select_rows": 128, "select": 128, "slab_block": 128, "loss_block": 128, "words": 1 << 16}
)
# As far as registers go. Sorting more at once compiles for a minute; rows from 32 on fail in RemoveLayoutConversions.
SMALL_ON_GPU = SMALL | {"sort": 16, "together": 2}
WIDE_ON_GPU = WIDE | {"rows": 8, "together": 2, "sort": 32, "select_rows": 4, "pack_rows": 8, "direct_b": 16}
# Every pair; keys of all references in a slab; candidates appended to lists, step by step
WAYS = {
    "direct": {"path": "direct"},
    "slab": {"path": "tiles", "append": False},
    "lists": {"path": "tiles", "append": True},
}
