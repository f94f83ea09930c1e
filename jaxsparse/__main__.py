"""`python -m jaxsparse`: what is installed here, how fast it is, and what checkpoints hold."""

import argparse
import dataclasses
import json
import pathlib
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jaxsparse",
        description="Sparse neural-network ops for JAX: what is installed, whether it is right and "
        "fast on this machine, and what checkpoints hold. Exit codes are 0 where all is well, 1 "
        "where something is missing or wrong here, 2 where what was asked for makes no sense.",
        epilog="First steps: python -m jaxsparse info; python -m jaxsparse check; python -m "
        "jaxsparse show CHECKPOINT. Each command has examples: python -m jaxsparse show --help.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser(
        "info",
        help="what is built, for which CPU, and what is missing",
        description="Prints the versions, the devices that JAX sees, and for CPUs and NVIDIA GPUs "
        "whether there are compiled kernels, for which instruction sets and architectures; if "
        "not, why. Without kernels everything runs in plain JAX.",
        epilog="JAXSPARSE_KERNELS=required makes missing kernels an error, =off leaves them out; "
        "JAXSPARSE_CPU_ISA=avx2 takes those of one instruction set.",
    )
    info.set_defaults(run=_info)
    bench = commands.add_parser(
        "bench",
        help="measure against XLA's dense ops",
        description="Times sparse against dense in one process, in turn, after checking results. "
        "Prints ratios (above 1: sparse is faster). Keep other programs off the cores used.",
        epilog="Example: python -m jaxsparse bench matmul --only '32x32 0.9' --peers",
    )
    bench.add_argument(
        "what",
        choices=[
            "matmul",
            "floor",
            "conv",
            "conv-floor",
            "masked",
            "resnet",
            "calibrate",
            "scaling",
            "overhead",
            "pruning",
            "regroup",
            "sparsify",
        ],
        help="products at 50 to 95 %% zeros; from 0 to 99 %%, never slower; both for convolutions; "
        "convolutions of sparse inputs; a whole ResNet-50; the same by a measured plan; two cores "
        "against one; costs besides arithmetic; training steps with RigL; what "
        "regrouping stores; how long substitution takes",
    )
    bench.add_argument("--quick", action="store_true", help="a few rows only")
    bench.add_argument("--threads", type=int, default=1, help="cores to use (default 1)")
    bench.add_argument("--seconds", type=float, default=1.0, help="sampling time of a row")
    bench.add_argument("--only", default="", help="rows whose label contains this, as '32x32 0.9'")
    bench.add_argument(
        "--peers",
        action="store_true",
        help="also time jax.experimental.sparse, scipy and torch (forward, float32)",
    )
    bench.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    bench.add_argument("--plot", type=pathlib.Path, help="draw speed against zeros into this PNG")
    bench.set_defaults(run=_bench)
    check = commands.add_parser(
        "check",
        help="compare every op with XLA's dense op on this machine",
        description="Runs every op in every format, forward and backward, on the compiled kernels "
        "and on XLA's dense op, and compares each element with what rounding allows. Prints a line "
        "for each; takes about a minute. The exit code is 0 if all agree, 1 if one differs or "
        "there are no kernels.",
        epilog="Example: python -m jaxsparse check --dtypes float16 --only 'conv 16x16'",
    )
    check.add_argument(
        "--dtypes", default="float32,bfloat16", help="with commas (default float32,bfloat16)"
    )
    check.add_argument("--only", default="", help="lines that contain this, as 'conv 16x16'")
    check.set_defaults(run=_check)
    tune = commands.add_parser(
        "tune",
        help="measure break-even points on this machine",
        description="Finds, for classes of problems, the density at which XLA's dense op becomes "
        "faster than the sparse kernel, and stores it where the dispatcher looks. Takes minutes; "
        "keep other programs off the core used.",
    )
    tune.add_argument("--seconds", type=float, default=0.2, help="sampling time of a comparison")
    tune.add_argument(
        "--only", default="", help="points whose line contains this; the others stay as they are"
    )
    tune.add_argument(
        "--folder", type=pathlib.Path, help="where to write (default: the user's cache folder)"
    )
    tune.set_defaults(run=_tune)
    _add_show(commands)
    _add_convert(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, TypeError) as error:
        print(f"jaxsparse: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"jaxsparse: {error}", file=sys.stderr)
        return 1


def _add_show(commands) -> None:
    show = commands.add_parser(
        "show",
        help="what is in a checkpoint: a table of its weights, pictures of their patterns",
        description="Prints a table of the weights in a checkpoint: format, density, zeros, bytes. "
        "With --layer also a picture of each pattern, inputs downwards and outputs to the right, "
        "the darker the more is stored; with --png a drawing of them.",
        epilog="Examples: python -m jaxsparse show trained --layer '.*' --width 40; "
        "python -m jaxsparse show model.safetensors --layer 'blocks/.*/kernel' --png patterns.png",
    )
    show.add_argument(
        "checkpoint",
        type=pathlib.Path,
        help="a folder of jaxsparse.io.save or of Orbax, or a safetensors file",
    )
    show.add_argument(
        "--layer", help="a regular expression for whole names of weights, as the table has them"
    )
    show.add_argument("--width", type=int, default=64, help="of pictures, in characters")
    show.add_argument("--png", type=pathlib.Path, help="draw the patterns into this file")
    show.set_defaults(run=_show)


def _add_convert(commands) -> None:
    convert = commands.add_parser(
        "convert",
        help="a checkpoint into another kind of file, other formats, or dense",
        description="Reads a checkpoint and writes another one. Rules give weights formats: "
        "NAME=FORMAT stores what is not zero, NAME=FORMAT@SPARSITY the parts of largest norm. NAME "
        "is a regular expression for the whole name of a weight, as in the table of show; the "
        "first rule that matches decides.",
        epilog="Examples: python -m jaxsparse convert trained trained.safetensors; "
        "python -m jaxsparse convert dense sparse --rule '.*/kernel=32x32@0.9'; "
        "python -m jaxsparse convert sparse plain --dense (for programs that know no patterns)",
    )
    convert.add_argument(
        "source",
        type=pathlib.Path,
        help="a folder of jaxsparse.io.save or of Orbax, or a safetensors file",
    )
    convert.add_argument(
        "target", type=pathlib.Path, help="a folder, or a file that ends in .safetensors"
    )
    convert.add_argument(
        "--rule", action="append", default=[], help="NAME=FORMAT[@SPARSITY]; may be repeated"
    )
    convert.add_argument("--dense", action="store_true", help="whole weights, no patterns")
    convert.add_argument("--overwrite", action="store_true", help="replace the target")
    convert.set_defaults(run=_convert)


def _info(options) -> int:
    import jax

    import jaxsparse
    from jaxsparse.core import native

    print(f"jaxsparse {jaxsparse.__version__}, jax {jax.__version__}")
    print(f"devices: {', '.join(sorted({d.device_kind for d in jax.devices()}))}")
    for platform in ("cpu", "cuda"):
        why = native.why_absent(platform) or native.why_unsuitable(platform)
        print(f"{platform} kernels: {'yes' if why is None else why}")
    if native.isa():
        print(f"cpu instruction set: {native.isa()}, of {', '.join(native.runnable_isas())}")
    if native.available("cuda"):
        cuda = native.module("cuda")
        built = f"CUDA {native.cuda_version(cuda.toolkit_version())}"
        driver = cuda.driver_version()
        here = f"for CUDA {native.cuda_version(driver)}" if driver else "none on this machine"
        print(f"cuda build: {built}, for {', '.join(cuda.architectures())}; driver: {here}")
        if not native.devices("cuda"):
            print(
                "cuda devices: none that JAX may use; programs for GPUs can be lowered and exported"
            )
    return 0


def _bench(options) -> int:
    from jaxsparse.bench import conv, masked, matmul, measure, overhead, plot, scaling
    from jaxsparse.tune import environment

    if options.peers and options.what not in matmul.TABLES:
        raise ValueError(f"bench: --peers goes with {_names(matmul.TABLES)}, got {options.what}.")
    if options.plot:
        drawn = {**matmul.TABLES, **conv.TABLES}
        if options.what not in drawn:
            raise ValueError(f"bench: --plot draws {_names(drawn)}, got {options.what}.")
        plot.require()  # or the error comes after minutes of measuring
    if options.what != "scaling":  # which starts processes of its own
        measure.pin(options.threads)
    if not options.seconds > 0:
        raise ValueError(f"bench: --seconds must be positive, got {options.seconds:g}.")
    print(environment.heading(), flush=True)
    common = (options.quick, options.seconds, options.only, options.threads)
    if options.what == "scaling":
        rows = scaling.run()
    elif options.what == "overhead":
        rows = overhead.run(options.quick)
    elif options.what == "regroup":
        from jaxsparse.bench import regroup

        rows = regroup.run(options.quick)
    elif options.what == "sparsify":
        from jaxsparse.bench import sparsify  # needs Flax

        rows = sparsify.run(options.quick, options.only)
    elif options.what == "pruning":
        from jaxsparse.bench import pruning  # needs optax

        rows = pruning.run(*common)
    elif options.what == "resnet":
        from jaxsparse.bench import resnet  # needs Flax

        rows = resnet.run(*common)
    elif options.what == "calibrate":
        from jaxsparse.bench import calibrate  # needs Flax

        rows = calibrate.run(*common)
    elif options.what in conv.TABLES:
        rows = conv.run(options.what, *common)
    elif options.what == "masked":
        rows = masked.run(*common)
    else:
        rows = matmul.run(options.what, *common, options.peers)
    if options.plot:
        plot.write(rows, options.plot)
    if options.json:
        content = {
            "environment": environment.describe(),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _show(options) -> int:
    from jaxsparse.io import show, weights

    tree = weights.tree_of("show", options.checkpoint)
    print(show.report(tree))
    if options.layer is not None:
        for each in show.pictures(tree, options.layer, width=options.width):
            print(f"\n{each}")
    if options.png is not None:
        count = show.draw(tree, options.layer or ".*", options.png)
        print(f"\nwrote {options.png}, {count} pattern{'s' if count != 1 else ''}")
    return 0


def _convert(options) -> int:
    from jaxsparse.io.convert import convert

    print(
        convert(
            options.source,
            options.target,
            options.rule,
            dense=options.dense,
            overwrite=options.overwrite,
        )
    )
    return 0


def _names(tables) -> str:
    return ", ".join(tables)


def _check(options) -> int:
    from jaxsparse.bench import verify
    from jaxsparse.tune import environment

    dtypes = options.dtypes.split(",")
    if unknown := sorted(set(dtypes) - set(verify.DTYPES)):
        raise ValueError(f"check: --dtypes takes {', '.join(verify.DTYPES)}, got {unknown}.")
    print(environment.heading(), flush=True)
    lines = []
    for line in verify.lines(dtypes, options.only):
        print(line, flush=True)
        lines.append(line)
    if not lines:
        raise ValueError(f"check: --only takes a part of a line, got {options.only!r}.")
    compared = [line for line in lines if line.found]
    if not compared:
        raise RuntimeError(f"there is nothing to check. {lines[0].why}")
    differ = [line.name for line in lines if not line.agrees]
    print(
        f"{len(compared)} of {len(lines)} ops compared, "
        + (f"{len(differ)} differ: {', '.join(differ)}" if differ else "all agree")
    )
    return 1 if differ else 0


def _tune(options) -> int:
    from jaxsparse.bench import measure
    from jaxsparse.core import dispatch, native
    from jaxsparse.tune import break_even, convolutions, environment, sparse_inputs

    if not native.available("cpu"):
        raise RuntimeError(f"nothing to tune. {native.why_absent('cpu')}")
    folder = options.folder or dispatch.user_tables()
    folder.mkdir(parents=True, exist_ok=True)  # or the error comes after minutes of measuring
    measure.pin(1)
    print(environment.heading(), flush=True)

    def compare(ours, theirs):
        samples = measure.interleaved({"ours": ours, "theirs": theirs}, seconds=options.seconds)
        return measure.median_ratio(samples, "theirs", "ours")

    report = lambda line: print(line, flush=True)
    table = break_even.measure(compare, report, options.only)
    convolutions.measure(table, compare, report, options.only)
    sparse_inputs.measure(table, compare, report, options.only)
    print(f"wrote {break_even.write(table, environment.describe(), folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
