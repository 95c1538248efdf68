// Command peer serves Pomerium's own file store (package pkg/storage/file of the published module) behind a thin gRPC
// server of our own, so that tools and benchmarks can be tried against another implementation of the interface.
//
// It is not Pomerium's databroker: that lies in internal packages. What the store decides (versions, indexes, options,
// streams, leases, the registry) is theirs; what its server decides (tokens, defaults, offsets, status codes) is ours.
package main

import (
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
	// The store can patch, index and search the types that are linked in.
	_ "github.com/pomerium/pomerium/pkg/grpc/device"
	_ "github.com/pomerium/pomerium/pkg/grpc/session"
	_ "github.com/pomerium/pomerium/pkg/grpc/testproto"
	_ "github.com/pomerium/pomerium/pkg/grpc/user"
	"github.com/pomerium/pomerium/pkg/storage/file"
)

func main() {
	address := flag.String("address", "127.0.0.1:0", "where to listen")
	dataDir := flag.String("data-dir", "./peer-data", "folder of the store; the files `address` and `shared_secret` are written there")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *address, *dataDir); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context, address, dataDir string) error {
	key, err := sharedKey(dataDir)
	if err != nil {
		return err
	}
	dsn, err := filepath.Abs(filepath.Join(dataDir, "store"))
	if err != nil {
		return err
	}
	backend := file.New(noop.NewTracerProvider(), "file://"+dsn)
	defer func() { _ = backend.Close() }()
	if err := installDefaults(ctx, backend); err != nil {
		return err
	}

	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(requireTokenUnary(key)),
		grpc.StreamInterceptor(requireTokenStream(key)),
	)
	databrokerpb.RegisterDataBrokerServiceServer(server, &records{backend: backend})
	databrokerpb.RegisterCheckpointServiceServer(server, &checkpoints{backend: backend})
	registrypb.RegisterRegistryServer(server, backend.RegistryServer())
	healthpb.RegisterHealthServer(server, health.NewServer())
	reflection.Register(server)

	url := "http://" + listener.Addr().String()
	if err := os.WriteFile(filepath.Join(dataDir, "address"), []byte(url+"\n"), 0o600); err != nil {
		return err
	}
	fmt.Println("listening on", url)
	go func() {
		<-ctx.Done()
		server.Stop()
	}()
	return server.Serve(listener)
}

// sharedKey reads the secret in the data folder, or makes one.
func sharedKey(dataDir string) ([]byte, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dataDir, "shared_secret")
	text, err := os.ReadFile(path)
	if err == nil {
		return base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	}
	key := randomKey()
	return key, os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(key)), 0o600)
}
