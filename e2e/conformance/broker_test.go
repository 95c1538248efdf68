package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker.dev/e2e/conformance/token"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
)

// patience bounds every wait; nothing here takes a tenth of it on an idle machine.
const patience = 30 * time.Second

// broker is a server process of its own data folder: a cluster of one, or a node of a cluster.
type broker struct {
	config  string   // its configuration file, for a node of a cluster
	others  *cluster // for a node of a cluster that stands for a server of its own: the nodes beside it
	binary  string
	peer    bool // whose command line it understands
	dir     string
	address string
	process *exec.Cmd
	log     *lockedBuffer
	exited  chan struct{}
	key     []byte
	conn    *grpc.ClientConn
}

// client has all clients of one server.
type client struct {
	databrokerpb.DataBrokerServiceClient
	checkpoint databrokerpb.CheckpointServiceClient
	registry   registrypb.RegistryClient
	conn       *grpc.ClientConn
}

// shared is the server of all tests that do not disturb others: each uses types of its own.
var shared *broker

func TestMain(m *testing.M) {
	if os.Getenv("DATABROKER_BIN") == "" {
		fmt.Fprintln(os.Stderr, "conformance: DATABROKER_BIN must name the server's binary, as a whole path. Run `e2e/test conformance`, which\n"+
			"builds one, or `cargo build --bin databroker` and then\n"+
			"\n    DATABROKER_BIN=\"$(pwd)/target/debug/databroker\" go test -C e2e/conformance ./...")
		os.Exit(1)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "conformance-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		shared = underTest(dir)
		defer shared.kill()
		if err := shared.start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// newBroker starts a server for one test alone.
func newBroker(t *testing.T) *broker {
	t.Helper()
	b := underTest(t.TempDir())
	b.startFor(t)
	return b
}

// underTest is the server as DATABROKER_BIN, DATABROKER_PEER and DATABROKER_FOLLOWER want it.
func underTest(dir string) *broker {
	if os.Getenv("DATABROKER_FOLLOWER") != "" {
		return newFollower(dir)
	}
	return &broker{binary: os.Getenv("DATABROKER_BIN"), peer: isPeer(), dir: dir}
}

// startFor starts it until the test ends.
func (b *broker) startFor(t *testing.T) {
	t.Helper()
	t.Cleanup(b.kill)
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
}

func isPeer() bool { return os.Getenv("DATABROKER_PEER") != "" }

// ours skips a test of what the peer is known to do differently.
func ours(t *testing.T) {
	t.Helper()
	if isPeer() {
		t.Skip("a deliberate difference")
	}
}

func (b *broker) dataDir() string { return filepath.Join(b.dir, "data") }

func (b *broker) args() []string {
	if b.config != "" {
		return []string{"serve", "--config", b.config}
	}
	address := b.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	if b.peer {
		return []string{"-address", address, "-data-dir", b.dataDir()}
	}
	return []string{
		"serve", "--grpc-address", address, "--health-check-addr", "127.0.0.1:0",
		"--databroker-storage-type", "file",
		"--databroker-storage-connection-string", "file://" + b.dataDir(),
	}
}

// start starts the process, on the address it had before if it had one, and waits until it answers.
func (b *broker) start() error {
	_ = os.Remove(b.addressFile()) // left by a killed process
	if err := b.launch(); err != nil {
		return err
	}
	if b.others != nil {
		if err := b.others.follow(b); err != nil {
			return err
		}
	}
	return b.await()
}

func (b *broker) addressFile() string { return filepath.Join(b.dataDir(), "address") }

// launch starts the process and waits for nothing.
func (b *broker) launch() error {
	b.log = new(lockedBuffer)
	b.process = exec.Command(b.binary, b.args()...)
	b.process.Dir = b.dir
	b.process.Stdout, b.process.Stderr = b.log, b.log
	if err := b.process.Start(); err != nil {
		return err
	}
	b.exited = make(chan struct{})
	go func(process *exec.Cmd, exited chan struct{}) {
		_ = process.Wait()
		close(exited)
	}(b.process, b.exited)
	return nil
}

// await waits until the process answers.
func (b *broker) await() error {
	deadline := time.Now().Add(patience)
	for {
		err := b.connect()
		if err == nil {
			return nil
		}
		select {
		case <-b.exited:
			return fmt.Errorf("the server exited:\n%s", b.log)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not answer: %w\n%s", err, b.log)
		}
	}
}

func (b *broker) connect() error {
	url, err := os.ReadFile(b.addressFile())
	if err != nil {
		return err
	}
	if b.config == "" {
		secret, err := os.ReadFile(filepath.Join(b.dataDir(), "shared_secret"))
		if err != nil {
			return err
		}
		if b.key, err = decodeKey(secret); err != nil {
			return err
		}
	}
	b.address = strings.TrimPrefix(strings.TrimSpace(string(url)), "http://")
	if b.address == "" {
		return errors.New("the file with the address is still empty")
	}
	if b.conn == nil {
		if b.conn, err = dial(b.address, b.key); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = b.client().ServerInfo(ctx, new(emptypb.Empty))
	return err
}

// dial connects as Pomerium's services do: plaintext, a new token for each call, waiting for the connection.
func dial(target string, key []byte, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	options := append(token.WithEachCall(key),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	return grpc.NewClient(target, append(options, more...)...)
}

func (b *broker) client() client { return clientOn(b.conn) }

func clientOn(conn *grpc.ClientConn) client {
	return client{
		DataBrokerServiceClient: databrokerpb.NewDataBrokerServiceClient(conn),
		checkpoint:              databrokerpb.NewCheckpointServiceClient(conn),
		registry:                registrypb.NewRegistryClient(conn),
		conn:                    conn,
	}
}

// stop asks the process to leave, and waits until it has.
func (b *broker) stop(t *testing.T) {
	t.Helper()
	if err := b.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.exited:
	case <-time.After(patience):
		t.Fatalf("the server does not stop:\n%s", b.log)
	}
	if code := b.process.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0:\n%s", code, b.log)
	}
}

// restart stops and starts it; clients keep their connection's address.
func (b *broker) restart(t *testing.T) {
	t.Helper()
	b.stop(t)
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
}

// restartAll restarts it and, where it is a node of a cluster, the others before.
func (b *broker) restartAll(t *testing.T) {
	t.Helper()
	if b.others != nil {
		for _, other := range b.others.nodes {
			other.stop(t)
			if err := other.launch(); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.restart(t)
}

func (b *broker) kill() {
	if b.conn != nil {
		_ = b.conn.Close()
	}
	if b.others != nil {
		b.others.kill()
	}
	b.end()
}

// end kills the process alone.
func (b *broker) end() {
	if b.process != nil && b.process.Process != nil {
		_ = b.process.Process.Kill()
		<-b.exited
	}
}

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
