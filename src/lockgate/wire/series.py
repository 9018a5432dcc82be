# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: infer_types=True, annotation_typing=False
"""Prometheus remote write's series -> OTLP number data points. A compiled kernel: see `lockgate.wire`.

It decides nothing: `scan` says which resources (job and instance) and which metrics (name, and in 2.0 the metadata) a request has, the
caller says once for each how it is written, and `write` puts every sample where it belongs. No cache of series: to write labels anew is
a copy of them, and costs less than to look them up. Histograms, exemplars and metadata are the caller's: `scan` says where they stand.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

import cython

from lockgate.wire.protobuf import DecodeError

if not cython.compiled:  # series.pxd has the compiled ones
    from lockgate.wire.memory import copy, equal, is_utf8, mixed, new_buffer, starts

compiled: bool = cython.compiled
"""Whether this is the compiled form."""

MOST_SERIES, MOST_SYMBOLS, MOST_LABELS = 1 << 18, 1 << 20, 256
"""What there is memory for whatever the samples are; Prometheus sends some thousands of series, and some 20 labels each."""
MOST_MESSAGES = 1 << 21
"""Data points, attributes and values, beyond which no receiver of ours would take what is written here (otlp.py)."""
_LATEST_MS = 9223372036854  # in 2262: what nanoseconds count to in 63 bits
_MOST_PROBES = 64  # so that labels made to collide cost no more than this; they stand in several groups then
_ROW = 8

REASONS = (
    "",
    "it has no metric name (__name__)",
    "a label has no name",
    "a label is there twice",
    "a label is not UTF-8",
    f"it has more than {MOST_LABELS} labels",
    "a reference is to no symbol of the request",
    "a label's reference has none for its value",
    "a sample's time is before 1970 or after 2262",
)
"""Why a series or a sample is refused, by number."""
_ALL = 2**64 - 1


class TooLarge(Exception):
    """What this request is translated to is larger than it may be."""


class Scan:
    """A request's series. Resources and metrics are numbered in the order in which they are first seen."""

    def __init__(self, payload: bytes, version: int) -> None:
        self.payload = bytes(payload)
        self.src, self.size = self.payload, len(payload)
        self.version = version
        self.series = 0
        """How many there are."""
        self.rows = self.row = array("i", [0])
        """Of each series: where it starts and ends, where its labels start and end (-1 where they stand apart), its resource's number
        (-1 where the series is refused), its metric's number, the size of its encoded data points, and whether it has histograms (1) or
        exemplars (2)."""
        self.resources: list[tuple[bytes, bytes]] = []
        """Job and instance of each."""
        self.metrics: list[tuple[bytes, int, int, int]] = []
        """Of each the name, and in 2.0 the type and the symbols of help and unit."""
        self.metadata: list[bytes] = []
        """Each MetricMetadata of 1.0."""
        self.refused = [0] * len(REASONS)
        """Samples and histograms by the number of the reason."""
        self.refusals = array("q", self.refused)
        self.first_refused, self.first_reason = -1, 0
        """Where the first series with something refused stands, and why."""
        self.accepted = self.lost_exemplars = 0
        """Samples in series that are not refused, and exemplars in those that are."""
        self.messages = 0
        self.symbols = 0
        self.mask = self.tag = self.wire = self.content = self.number = self.where = 0
        self.labels_from = self.labels_to = self.count = self.created = 0
        self.name = self.job = self.instance = -1
        self.attributes_size = self.points = self.late = self.histograms = self.exemplars = self.flags = 0
        self.kind = self.help = self.unit = 0
        self.time = self.start = self.value = 0
        self.stale = self.is_large = self.is_astray = self.is_valid = False
        self.resource_count = self.metric_count = 0
        self.key = self.key_size = self.text = self.text_size = array("i", [0])

    def field(self, at: int, end: int) -> int:
        """Behind the field there, or -1 where it is malformed. `content` is where its content starts; `number` a varint's value."""
        src = self.src
        self.where = at
        tag = src[at]
        at += 1
        if tag > 127:
            tag &= 127
            shift = 7
            while True:
                if at == end or shift > 28:
                    return -1
                byte = src[at]
                at += 1
                tag |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        self.tag = tag >> 3
        wire = tag & 7
        self.wire = wire
        if tag < 8 or tag >> 32:
            return -1
        self.content = at
        if wire == 1 or wire == 5:
            at += 8 if wire == 1 else 4
            return at if at <= end else -1
        if wire != 0 and wire != 2:
            return -1
        at = self.varint(at, end)
        if at < 0 or wire == 0:
            return at
        self.content = at
        size = end - at
        return at + self.number if self.number <= size else -1

    def varint(self, at: int, end: int) -> int:
        """Behind the varint there, or -1; `number` its value."""
        src = self.src
        value = shift = 0
        while at < end and shift < 70:
            byte = src[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                self.number = value & _ALL
                return at
            shift += 7
        return -1

    def frames(self) -> bool:
        """Counts series and symbols, and notes the symbols' places and the metadata."""
        series_tag = 1 if self.version == 1 else 5
        at = 0
        while at < self.size:
            at = self.field(at, self.size)
            if at < 0:
                return False
            if self.tag == series_tag:
                self.series += 1
            elif self.version == 2 and self.tag == 4:
                self.symbols += 1
            elif self.version == 1 and self.tag == 3:
                if self.wire != 2:
                    return False
                self.metadata.append(self.payload[self.content : at])
                continue
            else:
                continue
            if self.wire != 2:
                return False
        return True

    def allocate(self) -> None:
        one = array("i", [0])
        self.rows = one * max(1, _ROW * self.series)
        self.row = self.rows
        slots = 1
        while slots < 2 * self.series:
            slots *= 2
        self.mask = slots - 1
        self.resource_table, self.metric_table = one * slots, one * slots
        # Of each resource and metric: places of their texts in the payload.
        self.resource_at, self.metric_at = one * max(1, 4 * self.series), one * max(1, 5 * self.series)
        self.symbol_at, self.symbol_size = one * max(1, self.symbols), one * max(1, self.symbols)
        self.key, self.key_size = one * MOST_LABELS, one * MOST_LABELS
        self.text, self.text_size = one * MOST_LABELS, one * MOST_LABELS

    # --- Labels -------------------------------------------------------------------------------------------------------------------------

    def symbol(self, reference: int) -> int:
        """The symbol's number, or -1 where there is none."""
        return reference if reference < self.symbols else -1

    def label(self, at: int, end: int) -> int:
        """Notes the Label of 1.0 in [at, end). 0, -1 where it is malformed, or the reason why it is refused."""
        n = self.count
        if n == 256:  # MOST_LABELS
            return 5
        self.key[n] = self.key_size[n] = self.text[n] = self.text_size[n] = 0
        while at < end:
            at = self.field(at, end)
            if at < 0 or (self.tag <= 2 and self.wire != 2):
                return -1
            if self.tag == 1:
                self.key[n] = self.content
                self.key_size[n] = at - self.content
            elif self.tag == 2:
                self.text[n] = self.content
                self.text_size[n] = at - self.content
        self.count = n + 1
        return 0

    def reference(self, reference: int) -> int:
        """Notes one of the references of 2.0's labels, names and values in turn. 0, or why it is refused."""
        n = self.count >> 1
        if n == 256:  # MOST_LABELS
            return 5
        symbol = self.symbol(reference)
        if symbol < 0:
            return 6
        if self.symbol_size[symbol] < 0:  # not UTF-8
            return 4
        if self.count & 1:
            self.text[n] = self.symbol_at[symbol]
            self.text_size[n] = self.symbol_size[symbol]
        else:
            self.key[n] = self.symbol_at[symbol]
            self.key_size[n] = self.symbol_size[symbol]
        self.count += 1
        return 0

    def labels(self, at: int, end: int) -> int:
        """Notes the labels of the series in [at, end): `count` of them, and what else it has. As `label`."""
        refused = 0
        self.count = self.flags = self.histograms = self.exemplars = 0
        self.labels_from = self.labels_to = -1
        self.kind = self.help = self.unit = 0
        self.created = 0
        self.is_astray = False
        exemplar_tag = 3 if self.version == 1 else 4
        histogram_tag = 4 if self.version == 1 else 3
        while at < end:
            start = at
            stop = self.field(at, end)
            if stop < 0 or (self.wire != 2 and self.tag <= 4 and not (self.version == 2 and self.tag == 1 and self.wire == 0)):
                return -1
            at = stop
            if self.tag == 1:
                self.labels_from = start if self.labels_from == -1 else self.labels_from if self.labels_to == start else -2
                self.labels_to = stop
                why = 0
                if self.version == 1:
                    why = self.label(self.content, stop)
                elif self.wire == 0:
                    why = self.reference(self.number)
                else:
                    inner = self.content
                    while inner < stop and why == 0:
                        inner = self.varint(inner, stop)
                        if inner < 0:
                            return -1
                        why = self.reference(self.number)
                if why < 0:
                    return -1
                if refused == 0:
                    refused = why
            elif self.tag == histogram_tag:
                self.flags |= 1
                self.histograms += 1
            elif self.tag == exemplar_tag:
                self.flags |= 2
                self.exemplars += 1
            elif self.version == 2 and self.tag == 5:
                if self.wire != 2 or not self.described(self.content, stop):
                    return -1
            elif self.version == 2 and self.tag == 6 and self.wire == 0:
                self.created = self.number
        if self.version == 2:
            if refused == 0 and self.count & 1:
                refused = 7
            self.count >>= 1
            if refused == 0 and self.is_astray:
                refused = 6
        return refused

    def described(self, at: int, end: int) -> bool:
        """Notes the Metadata of 2.0 in [at, end)."""
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return False
            if self.wire != 0:
                continue
            if self.tag == 1:
                self.kind = self.number & 7 if self.number < 8 else 0
            elif self.tag == 3 or self.tag == 4:
                symbol = self.symbol(self.number)
                if symbol < 0:
                    self.is_astray = self.is_astray or self.number > 0
                elif self.tag == 3:
                    self.help = symbol
                else:
                    self.unit = symbol
        return True

    def named(self, n: int, name: bytes, size: int) -> bool:
        return self.key_size[n] == size and starts(self.src, self.key[n], self.key[n] + size, name)

    def check(self) -> int:
        """Finds what is special among the labels noted, and the size of the others as attributes. 0, or why the series is refused."""
        src = self.src
        self.name = self.job = self.instance = -1
        is_sorted = True
        size = 0
        for n in range(self.count):
            key = self.key_size[n]
            if key == 0:
                return 2
            if (
                self.version == 1
                and not self.is_valid
                and not (is_utf8(src, self.key[n], self.key[n] + key) and is_utf8(src, self.text[n], self.text[n] + self.text_size[n]))
            ):
                return 4
            if n > 0 and is_sorted:
                is_sorted = self.follows(n)
            if self.text_size[n] == 0:  # as good as not there (Prometheus' data model)
                continue
            if src[self.key[n]] == 95 and self.named(n, b"__name__", 8):
                self.name = n
            elif key == 3 and self.named(n, b"job", 3):
                self.job = n
            elif key == 8 and self.named(n, b"instance", 8):
                self.instance = n
            else:
                entry = self.entry_size(n)
                size += entry + width(entry) + 1
        self.attributes_size = size
        # Labels have to be sorted, but vmagent does not; those in order are known to differ.
        if not is_sorted:
            for n in range(1, self.count):
                for m in range(n):
                    if self.key_size[n] == self.key_size[m] and equal(src, self.key[n], src, self.key[m], self.key_size[n]):
                        return 3
        return 0 if self.name >= 0 else 1

    def follows(self, n: int) -> bool:
        """Whether the label's name is greater than that of the one before."""
        src = self.src
        size = min(self.key_size[n], self.key_size[n - 1])
        a = self.key[n - 1]
        b = self.key[n]
        for i in range(size):
            if src[a + i] != src[b + i]:
                return src[a + i] < src[b + i]
        return self.key_size[n - 1] < self.key_size[n]

    def entry_size(self, n: int) -> int:
        """The label's size as a KeyValue."""
        value = self.text_size[n] + width(self.text_size[n]) + 1
        return self.key_size[n] + width(self.key_size[n]) + 1 + value + width(value) + 1

    # --- Samples ------------------------------------------------------------------------------------------------------------------------

    def sample(self, at: int, end: int) -> int:
        """Notes the sample's `time` and `start` in milliseconds and where its `value` is (-1: it is 0). Its size as a data point without
        attributes, -1 where it is malformed, or 0 where its time cannot be told."""
        src = self.src
        self.time = 0
        self.start = self.created
        self.value = -1
        while at < end:
            at = self.field(at, end)
            if at < 0:
                return -1
            if self.tag == 1:
                if self.wire != 1:
                    return -1
                self.value = self.content
            elif self.tag == 2:
                if self.wire != 0:
                    return -1
                self.time = self.number
            elif self.tag == 3 and self.wire == 0 and self.number != 0:
                self.start = self.number
        if self.time > _LATEST_MS:
            return 0
        if self.start > _LATEST_MS:
            self.start = 0
        # The bytes of a stale marker: 02 00 00 00 00 00 F0 7F.
        at = self.value
        self.stale = (
            at >= 0
            and src[at] == 2
            and src[at + 7] == 0x7F
            and src[at + 6] == 0xF0
            and not (src[at + 1] or src[at + 2] or src[at + 3] or src[at + 4] or src[at + 5])
        )
        return 9 + (2 if self.stale else 9) + (9 if self.start else 0)

    def samples(self, at: int, end: int) -> int:
        """The size of the samples of the series in [at, end) as data points, or -1 where one is malformed; `points` of them."""
        total = 0
        self.points = self.late = 0
        while at < end:
            stop = self.field(at, end)
            at = stop
            if self.tag == 2:
                size = self.sample(self.content, stop)
                if size < 0:
                    return -1
                if size == 0:
                    self.late += 1
                    continue
                size += self.attributes_size
                total += size + width(size) + 1
                self.points += 1
        return total

    # --- Which belong together ----------------------------------------------------------------------------------------------------------

    def resource(self) -> int:
        """The number of the resource of the labels noted."""
        src = self.src
        job = self.text[self.job] if self.job >= 0 else 0
        job_size = self.text_size[self.job] if self.job >= 0 else 0
        instance = self.text[self.instance] if self.instance >= 0 else 0
        instance_size = self.text_size[self.instance] if self.instance >= 0 else 0
        key = mixed(mixed(1, src, job, job_size), src, instance, instance_size)
        at = self.resource_at
        place = 0
        for probe in range(_MOST_PROBES):
            place = (key + probe) & self.mask
            found = self.resource_table[place] - 1
            if found < 0:
                break
            i = 4 * found
            if (
                at[i + 1] == job_size
                and at[i + 3] == instance_size
                and equal(src, at[i], src, job, job_size)
                and equal(src, at[i + 2], src, instance, instance_size)
            ):
                return found
        i = 4 * self.resource_count
        at[i] = job
        at[i + 1] = job_size
        at[i + 2] = instance
        at[i + 3] = instance_size
        self.resource_count += 1
        self.resource_table[place] = self.resource_count
        return self.resource_count - 1

    def metric(self) -> int:
        """The number of the metric of the labels and metadata noted."""
        src = self.src
        name = self.text[self.name]
        size = self.text_size[self.name]
        key = mixed(self.kind, src, name, size)
        at = self.metric_at
        place = 0
        for probe in range(_MOST_PROBES):
            place = (key + probe) & self.mask
            found = self.metric_table[place] - 1
            if found < 0:
                break
            i = 5 * found
            if (
                at[i + 1] == size
                and at[i + 2] == self.kind
                and at[i + 3] == self.help
                and at[i + 4] == self.unit
                and equal(src, at[i], src, name, size)
            ):
                return found
        i = 5 * self.metric_count
        at[i] = name
        at[i + 1] = size
        at[i + 2] = self.kind
        at[i + 3] = self.help
        at[i + 4] = self.unit
        self.metric_count += 1
        self.metric_table[place] = self.metric_count
        return self.metric_count - 1

    def each_symbol(self) -> None:
        n = 0
        at = 0
        while at < self.size:
            at = self.field(at, self.size)
            if self.tag == 4:
                self.symbol_at[n] = self.content
                self.symbol_size[n] = at - self.content if is_utf8(self.src, self.content, at) else -1
                n += 1

    def each_series(self) -> bool:
        """Fills `rows`; False where the request is malformed."""
        series_tag = 1 if self.version == 1 else 5
        if self.version == 2:
            self.each_symbol()
        at = row = 0
        while at < self.size:
            stop = self.field(at, self.size)
            if self.tag != series_tag:
                at = stop
                continue
            begin = self.content
            why = self.labels(begin, stop)
            if why < 0:
                return False
            if why == 0:
                why = self.check()
            if why:
                self.attributes_size = 0
            size = self.samples(begin, stop)
            if size < 0:
                return False
            self.row[row] = begin
            self.row[row + 1] = stop
            self.row[row + 2] = self.labels_from if self.labels_from >= 0 else -1
            self.row[row + 3] = self.labels_to
            self.row[row + 7] = self.flags
            if why or self.late:
                if self.first_refused < 0:
                    self.first_refused = begin
                    self.first_reason = why if why else 8
                if why:
                    self.refusals[why] += self.points + self.late + self.histograms
                    self.lost_exemplars += self.exemplars
                else:
                    self.refusals[8] += self.late
            if why:
                self.row[row + 4] = -1
            else:
                self.accepted += self.points
                self.messages += self.points * (1 + 2 * self.count) + 4
                self.row[row + 4] = self.resource()
                self.row[row + 5] = self.metric()
                if size > 0x7FFFFFFF:
                    self.is_large = True
                    size = 0x7FFFFFFF
                self.row[row + 6] = size
            row += 8  # _ROW
            at = stop
        return True

    def name_all(self) -> None:
        """Makes `resources`, `metrics` and `refused` of what was found."""
        payload, at = self.payload, self.resource_at
        for i in range(0, 4 * self.resource_count, 4):
            self.resources.append((payload[at[i] : at[i] + at[i + 1]], payload[at[i + 2] : at[i + 2] + at[i + 3]]))
        at = self.metric_at
        for i in range(0, 5 * self.metric_count, 5):
            self.metrics.append((payload[at[i] : at[i] + at[i + 1]], at[i + 2], at[i + 3], at[i + 4]))
        self.refused = list(self.refusals)

    def text_of(self, symbol: int) -> bytes:
        """A symbol of 2.0; nothing where it is the first one (which is for nothing), there is none or it is not UTF-8."""
        if not 0 < symbol < self.symbols or self.symbol_size[symbol] < 0:
            return b""
        return self.payload[self.symbol_at[symbol] : self.symbol_at[symbol] + self.symbol_size[symbol]]

    def attributes(self, series: int, field: int, limit: int) -> bytes:
        """The labels of a series that is not refused, as attributes: KeyValue entries of this field, below 16. Raises TooLarge."""
        self.labels(self.row[_ROW * series], self.row[_ROW * series + 1])
        self.check()
        if self.attributes_size > limit:
            raise TooLarge
        out = new_buffer(self.attributes_size)
        self.put_attributes(out, 0, field << 3 | 2)
        return bytes(out)

    # --- Writing ------------------------------------------------------------------------------------------------------------------------

    def put_attributes(self, out: bytearray, o: int, tag: int) -> int:
        src = self.src
        for n in range(self.count):
            size = self.text_size[n]
            if size == 0 or n == self.name or n == self.job or n == self.instance:
                continue
            value = size + width(size) + 1
            out[o] = tag
            o = put_varint(out, o + 1, self.entry_size(n))
            out[o] = 0x0A
            o = put_varint(out, o + 1, self.key_size[n])
            o = copy(out, o, src, self.key[n], self.key_size[n])
            out[o] = 0x12
            o = put_varint(out, o + 1, value)
            out[o] = 0x0A
            o = put_varint(out, o + 1, size)
            o = copy(out, o, src, self.text[n], size)
        return o

    def put_points(self, begin: int, end: int, out: bytearray, o: int) -> int:
        """The samples of the series in [begin, end) as data points."""
        src = self.src
        self.labels(begin, end)
        self.check()
        written = -1
        at = begin
        while at < end:
            stop = self.field(at, end)
            at = stop
            if self.tag != 2:
                continue
            size = self.sample(self.content, stop)
            if size == 0:
                continue
            out[o] = 0x0A
            o = put_varint(out, o + 1, size + self.attributes_size)
            if self.start:
                out[o] = 0x11
                o = put_fixed64(out, o + 1, self.start * 1000000)
            out[o] = 0x19
            o = put_fixed64(out, o + 1, self.time * 1000000)
            if self.stale:
                out[o] = 0x40
                out[o + 1] = 1
                o += 2
            else:
                out[o] = 0x21
                o = put_fixed64(out, o + 1, 0) if self.value < 0 else copy(out, o + 1, src, self.value, 8)
            if written < 0:
                written = o
                o = self.put_attributes(out, o, 0x3A)
            else:
                o = copy_within(out, o, written, self.attributes_size)
        return o


class _Layout:
    """Where everything goes. A home is a metric of a resource."""

    def __init__(self, scan: Scan, resources: Sequence[bytes], metrics: Sequence[bytes], is_sum: bytes, skip: bytes) -> None:
        self.scan, self.skip, self.is_sum = scan, skip, is_sum
        self.resources, self.metrics = b"".join(resources), b"".join(metrics)
        self.resource_bytes, self.metric_bytes = self.resources, self.metrics
        self.skips, self.sums = self.skip, self.is_sum
        self.resource_end = array("i", accumulate(map(len, resources), initial=0))
        self.metric_end = array("i", accumulate(map(len, metrics), initial=0))
        one = array("i", [0])
        series = scan.series
        self.table = one * (self.scan.mask + 1)
        self.home_of = one * max(1, series)
        self.home_resource, self.home_metric = one * max(1, series), one * max(1, series)
        self.home_size, self.fill = array("q", [0]) * max(1, series), array("q", [0]) * max(1, series)
        self.resource_size, self.resource_fill = array("q", [0]) * max(1, len(resources)), array("q", [0]) * max(1, len(resources))
        self.homes = 0

    def home(self, resource: int, metric: int) -> int:
        key = mixed(resource + (metric << 20), self.sums, 0, 0)
        place = 0
        for probe in range(_MOST_PROBES):
            place = (key + probe) & self.scan.mask
            found = self.table[place] - 1
            if found < 0:
                break
            if self.home_resource[found] == resource and self.home_metric[found] == metric:
                return found
        self.home_resource[self.homes] = resource
        self.home_metric[self.homes] = metric
        self.homes += 1
        self.table[place] = self.homes
        return self.homes - 1

    def body(self, home: int) -> int:
        """The size of a home's Gauge or Sum."""
        return self.home_size[home] + (4 if self.sums[self.home_metric[home]] else 0)

    def metric_size(self, home: int) -> int:
        metric = self.home_metric[home]
        size = self.body(home)
        return self.metric_end[metric + 1] - self.metric_end[metric] + 1 + width(size) + size

    def measure(self, resources: int) -> int:
        """The size of all."""
        rows = self.scan.row
        for i in range(self.scan.series):
            row = 8 * i  # _ROW
            self.home_of[i] = -1
            if rows[row + 4] >= 0 and rows[row + 6] > 0 and not self.skips[i]:
                home = self.home(rows[row + 4], rows[row + 5])
                self.home_of[i] = home
                self.home_size[home] += rows[row + 6]
        for home in range(self.homes):
            size = self.metric_size(home)
            self.resource_size[self.home_resource[home]] += size + width(size) + 1
        total = 0
        for resource in range(resources):
            scope = self.resource_size[resource]
            if scope:
                size = self.resource_end[resource + 1] - self.resource_end[resource] + 1 + width(scope) + scope
                self.resource_fill[resource] = total
                total += size + width(size) + 1
        return total

    def put(self, resources: int, out: bytearray) -> None:
        """The heads of all, then each series' data points where they belong."""
        for resource in range(resources):
            scope = self.resource_size[resource]
            if scope:
                o = self.resource_fill[resource]
                head = self.resource_end[resource + 1] - self.resource_end[resource]
                out[o] = 0x0A
                o = put_varint(out, o + 1, head + 1 + width(scope) + scope)
                o = copy(out, o, self.resource_bytes, self.resource_end[resource], head)
                out[o] = 0x12
                self.resource_fill[resource] = put_varint(out, o + 1, scope)
        for home in range(self.homes):
            resource = self.home_resource[home]
            metric = self.home_metric[home]
            head = self.metric_end[metric + 1] - self.metric_end[metric]
            o = self.resource_fill[resource]
            out[o] = 0x12
            o = put_varint(out, o + 1, self.metric_size(home))
            o = copy(out, o, self.metric_bytes, self.metric_end[metric], head)
            out[o] = 0x3A if self.sums[metric] else 0x2A
            o = put_varint(out, o + 1, self.body(home))
            if self.sums[metric]:  # cumulative, monotonic
                out[o] = 0x10
                out[o + 1] = 2
                out[o + 2] = 0x18
                out[o + 3] = 1
                o += 4
            self.fill[home] = o
            self.resource_fill[resource] = o + self.home_size[home]
        rows = self.scan.row
        for i in range(self.scan.series):
            home = self.home_of[i]
            if home >= 0:
                self.fill[home] = self.scan.put_points(rows[8 * i], rows[8 * i + 1], out, self.fill[home])


def width(number: int) -> int:
    """Bytes of the number as a varint."""
    size = 1
    while number > 127:
        number >>= 7
        size += 1
    return size


def put_varint(out: bytearray, o: int, number: int) -> int:
    while number > 127:
        out[o] = number & 127 | 128
        number >>= 7
        o += 1
    out[o] = number
    return o + 1


def put_fixed64(out: bytearray, o: int, number: int) -> int:
    for i in range(8):
        out[o + i] = number & 255
        number >>= 8
    return o + 8


def copy_within(out: bytearray, o: int, start: int, size: int) -> int:
    return copy(out, o, out, start, size)


def scan(payload: bytes, version: int) -> Scan:
    """The series of a WriteRequest of remote write 1.0 (`version` 1) or of a Request of 2.0 (2).

    Raises DecodeError for what is not protobuf of that message, or has more series than there is memory for.
    """
    if version not in (1, 2):
        raise ValueError(f"no such version: {version}")
    if len(payload) > 0x7FFFFFFF:
        raise DecodeError("the request is larger than 2 GiB")
    work = Scan(payload, version)
    ok = work.frames()
    if ok and (work.series > MOST_SERIES or work.symbols > MOST_SYMBOLS):
        raise DecodeError(f"more than {MOST_SERIES} series or {MOST_SYMBOLS} symbols; send smaller requests")
    if ok:
        work.allocate()
        with cython.nogil:
            ok = work.each_series()
    if ok and work.messages > MOST_MESSAGES:
        raise DecodeError(f"more than {MOST_MESSAGES} data points, attributes and values; send smaller requests")
    if not ok:
        what = "prometheus.WriteRequest" if version == 1 else "io.prometheus.write.v2.Request"
        raise DecodeError(f"not a {what}: malformed at byte {work.where} of {len(payload)}")
    work.name_all()
    work.is_valid = True
    return work


def write(scan: Scan, resources: Sequence[bytes], metrics: Sequence[bytes], is_sum: bytes, skip: bytes, limit: int) -> bytes:
    """The samples of the series that are not to be skipped, as an ExportMetricsServiceRequest of at most `limit` bytes.

    `resources`: the resource field of a ResourceMetrics, for each of the scan's. `metrics`: the fields of a Metric but its data, for each;
    `is_sum`: for each 1 where it is a cumulative monotonic sum, 0 where it is a gauge. `skip`: for each series 1 where it is left out.
    Raises TooLarge.
    """
    if (len(resources), len(metrics), len(is_sum), len(skip)) != (len(scan.resources), len(scan.metrics), len(scan.metrics), scan.series):
        raise ValueError("not one for each resource, metric and series of the scan")
    work = cython.declare(Scan, scan)
    if sum(map(len, resources)) + sum(map(len, metrics)) > min(limit, 0x7FFFFFFF) or work.is_large:
        raise TooLarge
    layout = _Layout(work, resources, metrics, bytes(is_sum) or b"\0", bytes(skip) or b"\0")
    count = cython.declare(cython.Py_ssize_t, len(resources))
    with cython.nogil:
        size = layout.measure(count)
    if size > limit:
        raise TooLarge
    buffer = new_buffer(size)
    out = cython.declare("unsigned char*", buffer)
    with cython.nogil:
        layout.put(count, out)
    return bytes(buffer)
