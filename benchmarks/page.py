"""Write `docs/performance.md` and its plot from the saved results of the benchmarks.

python -m benchmarks.page
"""

from __future__ import annotations

from benchmarks.timing import RESULTS, ROOT, AnyResult, Result, compute_ratios, format_result, read_result

ORDER = (
    "input_path", "augmentation", "packing", "training", "batch_norm", "inference", "classify", "whole", "peers",
    "cost", "tables", "full_size", "startup", "scaling",
    "gpu_training", "gpu_inference", "gpu_loading", "gpu_training_sizes", "gpu_inference_sizes",
)  # fmt: skip
PAGE, NOTES = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "notes.md"
PLOT = RESULTS / "ratios.svg"


def read_results() -> list[AnyResult]:
    """Return the saved results in the order of the page."""
    paths = [RESULTS / f"{name}.json" for name in ORDER]
    return [read_result(path) for path in paths if path.exists()]


def plot_ratios(results: list[AnyResult]) -> None:
    """Write a plot of each contender's ratio to the first of its benchmark, with its range, on a logarithmic axis."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [
        (result.title.split(",")[0], name, ratio)
        for result in results
        if isinstance(result, Result) and "/" in result.unit
        for name, ratio in list(compute_ratios(result.rates).items())[1:]
    ][::-1]
    figure = Figure(figsize=(9, 0.38 * len(rows) + 1), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, _, (least, middle, greatest)) in enumerate(rows):
        axes.plot([least, greatest], [place, place], color="#0072b2", linewidth=2)
        axes.plot(middle, place, "o", color="#0072b2")
        axes.annotate(f"{middle:.3g}", (greatest, place), xytext=(6, -3), textcoords="offset points", fontsize=8)
    axes.axvline(1, color="grey", linestyle=":")
    axes.set_yticks(range(len(rows)), [f"{part}: {name}" for part, name, _ in rows], fontsize=8)
    axes.set(xscale="log", xlabel="ratio to the first row of the same benchmark")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "claris"}):
        figure.savefig(PLOT, metadata={"Date": None})


def describe_gpu_results(results: list[AnyResult]) -> str:
    """Return the sentence of the page about GPU results."""
    if any(result.name.startswith("gpu") for result in results):
        return "GPU results are at the end, with the name of the GPU."
    return "**No benchmark has been run on a GPU yet.**"


def format_page(results: list[AnyResult]) -> str:
    """Return the page as Markdown."""
    parts = [
        "# Performance",
        "",
        NOTES.read_text("utf-8").strip().replace("{GPU}", describe_gpu_results(results)),
        "",
        f"![ratios]({PLOT.relative_to(PAGE.parent)})",
    ]
    for result in results:
        module = "gpu" if result.name.startswith("gpu") else result.name
        parts += ["", f"## {result.title}", "", f"`python -m benchmarks.{module}` on {result.machine}.", ""]
        parts += [format_result(result), "", *(f"- {name}: {text}" for name, text in result.facts.items())]
        parts += [f"- {note}" for note in result.notes]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    saved = read_results()
    plot_ratios(saved)
    PAGE.write_text(format_page(saved), "utf-8")
    print(PAGE.relative_to(ROOT))
