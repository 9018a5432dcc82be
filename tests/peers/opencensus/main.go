// What the collector's translator makes of OpenCensus: `opencensus traces|metrics` reads the bytes of one Export request of the agent's
// protocol and writes those of an OTLP export request. v0.133.0 was the translator's last version.
package main

import (
	"fmt"
	"io"
	"os"

	metricsagent "github.com/census-instrumentation/opencensus-proto/gen-go/agent/metrics/v1"
	traceagent "github.com/census-instrumentation/opencensus-proto/gen-go/agent/trace/v1"
	"github.com/open-telemetry/opentelemetry-collector-contrib/pkg/translator/opencensus"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	"google.golang.org/protobuf/proto"
)

func translate(signal string, body []byte) ([]byte, error) {
	switch signal {
	case "traces":
		var request traceagent.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &request); err != nil {
			return nil, err
		}
		return ptraceotlp.NewExportRequestFromTraces(opencensus.OCToTraces(request.Node, request.Resource, request.Spans)).MarshalProto()
	case "metrics":
		var request metricsagent.ExportMetricsServiceRequest
		if err := proto.Unmarshal(body, &request); err != nil {
			return nil, err
		}
		return pmetricotlp.NewExportRequestFromMetrics(opencensus.OCToMetrics(request.Node, request.Resource, request.Metrics)).MarshalProto()
	}
	return nil, fmt.Errorf("%q is neither traces nor metrics", signal)
}

func main() {
	body, err := io.ReadAll(os.Stdin)
	if err == nil {
		body, err = translate(os.Args[1], body)
	}
	if err == nil {
		_, err = os.Stdout.Write(body)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
