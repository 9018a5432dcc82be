// What the Kubernetes project's own policy engine says of connections: a JSON object on standard input, a list of booleans on standard output.
package main

import (
	"context"
	"encoding/json"
	"net"
	"os"

	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

type connection struct {
	Source, Target, Protocol string
	Port                     int
}

type question struct {
	Pods []struct {
		Address, Namespace string
		Labels             map[string]string
	}
	Policies    []networkingv1.NetworkPolicy
	Connections []connection
}

type byAddress map[string]*api.PodInfo

func (pods byAddress) GetPodInfoByIP(address string) (*api.PodInfo, bool) {
	pod, known := pods[address]
	return pod, known
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var asked question
	must(json.NewDecoder(os.Stdin).Decode(&asked))
	// A client that is never used: the informers' stores are filled by hand.
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:0"})
	must(err)
	factory := informers.NewSharedInformerFactory(client, 0)
	policies := factory.Networking().V1().NetworkPolicies()
	for index := range asked.Policies {
		must(policies.Informer().GetStore().Add(&asked.Policies[index]))
	}
	pods := byAddress{}
	for _, pod := range asked.Pods {
		object := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p" + pod.Address, Namespace: pod.Namespace, Labels: pod.Labels}}
		pods[pod.Address] = api.NewPodInfo(object, map[string]string{"kubernetes.io/metadata.name": pod.Namespace}, nil, "")
	}
	standard := networkpolicy.NewStandardNetworkPolicy("node", factory.Core().V1().Namespaces(), factory.Core().V1().Pods(), policies)
	engine := networkpolicy.NewPolicyEngine(pods, []api.PolicyEvaluator{standard})
	passed := []bool{}
	for _, each := range asked.Connections {
		packet := network.Packet{
			Family: v1.IPv4Protocol, SrcIP: net.ParseIP(each.Source), DstIP: net.ParseIP(each.Target),
			Proto: v1.Protocol(each.Protocol), SrcPort: 40000, DstPort: each.Port,
		}
		verdict, err := engine.EvaluatePacket(context.Background(), &packet)
		must(err)
		passed = append(passed, verdict)
	}
	must(json.NewEncoder(os.Stdout).Encode(passed))
}
