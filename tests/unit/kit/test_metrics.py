"""Metrics as Prometheus text."""

from lockgate.kit.metrics import Metrics


def test_rendered_text() -> None:
    metrics = Metrics()
    metrics.counter("b_total", "counts \\ and\nlines", path='a"b\\c\nd', zone="1").add(2)
    metrics.counter("b_total", "counts").add(0.5)
    metrics.gauge("a", "gauge").set(float("inf"))
    metrics.gauge("c", "gauge").set(float("nan"))
    metrics.observe("d", "read", lambda: 7)
    assert metrics.render() == (
        "# HELP a gauge\n# TYPE a gauge\na +Inf\n"
        '# HELP b_total counts \\\\ and\\nlines\n# TYPE b_total counter\nb_total 0.5\nb_total{path="a\\"b\\\\c\\nd",zone="1"} 2\n'
        "# HELP c gauge\n# TYPE c gauge\nc NaN\n"
        "# HELP d read\n# TYPE d gauge\nd 7\n"
    )


def test_the_same_name_and_labels_are_the_same_series_in_any_order() -> None:
    metrics = Metrics()
    one = metrics.counter("n", "h", a="1", b="2")
    assert metrics.counter("n", "h", b="2", a="1") is one
    one.add()
    metrics.counter("n", "h", a="1", b="3").add(4)
    assert (metrics.value("n", a="1"), metrics.value("n", b="3"), metrics.value("n", c="1"), metrics.value("none")) == (5, 4, 0, 0)
    assert ("n", {"a": "1", "b": "2"}, 1) in metrics.collect()
