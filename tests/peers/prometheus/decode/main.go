// What Prometheus' own receiver does with a body of remote write before it stores anything: inflate, decode, labels. `decode BODY_1_0 BODY_2_0`
// prints samples per CPU second for each, for bench/remote_write.py.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/gogo/protobuf/proto"
	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
)

func spent() time.Duration {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func first(body []byte, builder *labels.ScratchBuilder) (samples int) {
	var request prompb.WriteRequest
	must(proto.Unmarshal(body, &request))
	for _, series := range request.Timeseries {
		valid(series.ToLabels(builder, nil))
		samples += len(series.Samples)
	}
	return samples
}

func second(body []byte, builder *labels.ScratchBuilder) (samples int) {
	var request writev2.Request
	must(proto.Unmarshal(body, &request))
	for _, series := range request.Timeseries {
		found, err := series.ToLabels(builder, request.Symbols)
		must(err)
		valid(found)
		samples += len(series.Samples)
	}
	return samples
}

func valid(found labels.Labels) {
	if _, twice := found.HasDuplicateLabelNames(); twice || !found.Has("__name__") {
		panic("not a series")
	}
}

func main() {
	builder := labels.NewScratchBuilder(0)
	for number, take := range []func([]byte, *labels.ScratchBuilder) int{first, second} {
		compressed, err := os.ReadFile(os.Args[1+number])
		must(err)
		samples, begin := 0, spent()
		for spent()-begin < 2*time.Second {
			body, err := snappy.Decode(nil, compressed)
			must(err)
			samples += take(body, &builder)
		}
		fmt.Printf("%.0f\n", float64(samples)/(spent()-begin).Seconds())
	}
}
