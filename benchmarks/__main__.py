"""`python -m benchmarks`, which is what `ldreg bench` runs."""

from .cli import app

app(prog_name="ldreg bench")
