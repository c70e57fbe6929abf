package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/dns/dnsmessage"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// What a name is below; the kubelet's clusterDomain.
const domain = ".svc.cluster.local."

// newNamesCommand is the cluster's name service: addresses of Services by
// NAME.NAMESPACE.svc.cluster.local. CoreDNS would add 150 modules to this one.
func newNamesCommand() *cobra.Command {
	var kubeconfig, listen string
	command := &cobra.Command{Use: "names", RunE: func(command *cobra.Command, _ []string) error {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return err
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		socket, err := net.ListenPacket("udp", listen)
		if err != nil {
			return err
		}
		for {
			packet := make([]byte, 1500)
			size, peer, err := socket.ReadFrom(packet)
			if err != nil {
				return err
			}
			go func() {
				answer, err := answer(command.Context(), client, packet[:size])
				if err != nil {
					fmt.Fprintln(os.Stderr, "names:", err)
					return
				}
				// Whoever asked may be gone, and would ask again.
				_, _ = socket.WriteTo(answer, peer)
			}()
		}
	}}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "where the API server is")
	command.Flags().StringVar(&listen, "listen", "127.0.0.1:53", "address and port")
	return command
}

func answer(ctx context.Context, client kubernetes.Interface, packet []byte) ([]byte, error) {
	var query dnsmessage.Message
	if err := query.Unpack(packet); err != nil {
		return nil, err
	}
	if query.Response || len(query.Questions) != 1 {
		return nil, fmt.Errorf("not a query")
	}
	question := query.Questions[0]
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: query.ID, Response: true, Authoritative: true,
			RecursionDesired: query.RecursionDesired, RecursionAvailable: true,
		},
		Questions: query.Questions,
	}
	addresses, err := lookUp(ctx, client, strings.ToLower(question.Name.String()))
	switch {
	case errors.IsNotFound(err):
		reply.RCode = dnsmessage.RCodeNameError
	case err != nil:
		fmt.Fprintln(os.Stderr, "names:", err)
		reply.RCode = dnsmessage.RCodeServerFailure
	}
	for _, address := range addresses {
		if address.Is4() && question.Type == dnsmessage.TypeA {
			reply.Answers = append(reply.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: address.As4()},
			})
		}
	}
	return reply.Pack()
}

// lookUp gives a Service's addresses: its own, or its ready endpoints' where it
// is headless. Any other name is not found.
func lookUp(ctx context.Context, client kubernetes.Interface, name string) ([]netip.Addr, error) {
	service, namespace, ok := strings.Cut(strings.TrimSuffix(name, domain), ".")
	if !ok || !strings.HasSuffix(name, domain) || strings.Contains(namespace, ".") {
		return nil, errors.NewNotFound(schema.GroupResource{Resource: "services"}, name)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found, err := client.CoreV1().Services(namespace).Get(ctx, service, meta.GetOptions{})
	if err != nil {
		return nil, err
	}
	texts := found.Spec.ClusterIPs
	if found.Spec.ClusterIP == "None" {
		slices, err := client.DiscoveryV1().EndpointSlices(namespace).List(ctx,
			meta.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
		if err != nil {
			return nil, err
		}
		texts = nil
		for _, slice := range slices.Items {
			for _, endpoint := range slice.Endpoints {
				if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
					texts = append(texts, endpoint.Addresses...)
				}
			}
		}
	}
	var addresses []netip.Addr
	for _, text := range texts {
		if address, err := netip.ParseAddr(text); err == nil {
			addresses = append(addresses, address)
		}
	}
	return addresses, nil
}
