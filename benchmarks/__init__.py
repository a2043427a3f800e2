"""Benchmarks of ldreg_kernels: `ldreg bench`, or `python -m benchmarks` from the root of a checkout.

    cases.py         what is timed: shapes, dtypes, modes, and the suites they form
    contenders.py    who is timed: our backends, the published form, and the searches of searches.py completed
                     to a loss with gradient
    gate.py          is the answer right? Nothing wrong is timed
    harness.py       how long did it take, how many launches, how much memory: inside one process
    worker.py        one process per contender, driven by session.py, which lets them take turns
    roofline.py      what the hardware could do, measured in the same run
    train_step.py    the regulariser inside the training step of simclr_step.py
    contrastive.py   losses over all pairs of a batch against those that keep the matrix of logits
    pretraining.py   trainings on Fashion-MNIST, with and without regularisers: accuracy and geometry, not time
    isa.py           the instruction sets of our CPU kernels that this machine executes
    records.py       one row per measurement, append-only
    selection.py     which rows count, by device and instruction set; from them tables.py, standings.py (other
                     libraries), goals.py, plots.py and, for page and README, report.py
    compare.py       this checkout against another commit
    builds.py        the CPU extension of two compilers, every instruction set, against each other
    cli.py           ldreg bench
    compiled.py      what the Triton kernels compile to, for every architecture; no GPU needed
    compiled_cuda.py what the CUDA C++ kernels were compiled to, from the built module; no GPU needed
    counted.py       what they will take on an H200, counted from that machine code: counted_sass.py, counted_loops.py
                     and counted_lanes.py read it, counted_stages.py (counted_dense.py, counted_direct.py,
                     counted_teams.py) and counted_model.py make times of it
    bench_*.py       the small cases through pytest-benchmark: pytest benchmarks/
    gpu_gate.sh      build, GPU tests, compute-sanitizer on the shapes of sanitize.py, benchmarks: summary.py looks at
                     the machine, gpu_pytest.py is in its pytest, gate_page.py judges
    gpu_bundle.sh    what the gate needs, built elsewhere: gpu_bundle.py checks it there, triton_cache.py is its half
                     for Triton

Nothing here is imported by the package, and nothing here is installed with it.
"""
