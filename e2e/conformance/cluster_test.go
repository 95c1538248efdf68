package conformance

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"

	_ "google.golang.org/grpc/health" // clients ask for it, see roaming
)

// nodesPerCluster is the smallest number of which one may be lost.
const nodesPerCluster = 3

// cluster has the nodes of one, or those beside the one that is under test.
type cluster struct {
	nodes []*broker
	once  sync.Once
	fault error
}

// newCluster starts a cluster and waits until all its nodes vote.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	nodes, err := prepareNodes(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{nodes: nodes}
	t.Cleanup(c.kill)
	for _, node := range c.nodes {
		if err := node.launch(); err != nil {
			t.Fatal(err)
		}
	}
	if err := found(c.nodes[0]); err != nil {
		t.Fatal(err)
	}
	for _, node := range c.nodes {
		if err := node.await(); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// newFollower is one node of a cluster, which does not lead when it is started.
func newFollower(dir string) *broker {
	nodes, err := prepareNodes(dir)
	if err != nil {
		return &broker{others: &cluster{fault: err}}
	}
	node := nodes[nodesPerCluster-1]
	node.others = &cluster{nodes: nodes[:nodesPerCluster-1]}
	return node
}

// prepareNodes writes the configurations of a cluster's nodes.
func prepareNodes(dir string) ([]*broker, error) {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	var nodes []*broker
	var members strings.Builder
	var raft []string
	for number := 1; number <= nodesPerCluster; number++ {
		name := fmt.Sprintf("node-%d", number)
		own := filepath.Join(dir, name)
		if err := os.MkdirAll(own, 0o700); err != nil {
			return nil, err
		}
		node := &broker{
			binary: os.Getenv("DATABROKER_BIN"), dir: own, config: filepath.Join(own, "config.yaml"), key: key,
			address: freeAddress(),
		}
		nodes, raft = append(nodes, node), append(raft, freeAddress())
		fmt.Fprintf(&members, "  - {id: %s, grpc_address: \"http://%s\", raft_address: \"%s\"}\n", name, node.address, raft[number-1])
	}
	for index, node := range nodes {
		config := fmt.Sprintf("grpc_address: %s\nhealth_check_addr: 127.0.0.1:0\nshared_secret: %s\n"+
			"databroker_storage_type: file\ndatabroker_storage_connection_string: file://%s\n"+
			"databroker_cluster_node_id: node-%d\ndatabroker_raft_bind_address: %s\ndatabroker_cluster_nodes:\n%s",
			node.address, base64.StdEncoding.EncodeToString(key), node.dataDir(), index+1, raft[index], members.String())
		if err := os.WriteFile(node.config, []byte(config), 0o600); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// freeAddress has a port that was free a moment ago, below those that the system gives to connections.
func freeAddress() string {
	for {
		offset, err := rand.Int(rand.Reader, big.NewInt(22_000))
		if err != nil {
			panic(err)
		}
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+offset.Int64())
		if listener, err := net.Listen("tcp", address); err == nil {
			_ = listener.Close()
			return address
		}
	}
}

// follow brings up the nodes beside one that was just started, and lets another lead.
func (c *cluster) follow(node *broker) error {
	c.once.Do(func() {
		if c.fault != nil {
			return
		}
		for _, other := range c.nodes {
			c.fault = errors.Join(c.fault, other.launch())
		}
		c.fault = errors.Join(c.fault, found(c.nodes[0]))
	})
	if c.fault != nil {
		return c.fault
	}
	return within(func() error {
		status, err := statusOf(c.nodes[0])
		switch {
		case err != nil:
			return err
		case status.Leader == "":
			return errors.New("nobody leads")
		case status.Leader == node.name():
			_, err := administer(node, "cluster", "handover", "--to", c.nodes[0].name())
			return errors.Join(errors.New("the node under test leads"), err)
		}
		return nil
	})
}

func (c *cluster) kill() {
	for _, node := range c.nodes {
		node.kill()
	}
}

func (b *broker) name() string { return filepath.Base(b.dir) }

// administer runs a command of the broker's binary against a node.
func administer(node *broker, args ...string) ([]byte, error) {
	command := exec.Command(node.binary, append(args, "--config", node.config)...)
	output, err := command.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%v: %s", args, failed.Stderr)
	}
	return output, err
}

type clusterStatus struct {
	Leader  string
	Members []struct {
		Name, Role          string
		Reachable, CaughtUp bool
	}
}

// whole tells that all nodes vote, answer, and have what the leader has.
func (s clusterStatus) whole() bool {
	well := 0
	for _, member := range s.Members {
		if (member.Role == "leader" || member.Role == "voter") && member.Reachable && member.CaughtUp {
			well++
		}
	}
	return s.Leader != "" && well == nodesPerCluster && len(s.Members) == nodesPerCluster
}

func statusOf(node *broker) (clusterStatus, error) {
	var status clusterStatus
	output, err := administer(node, "cluster", "status", "-o", "json")
	if err != nil {
		return status, err
	}
	return status, json.Unmarshal(output, &status)
}

// found makes one cluster of nodes that were started, by way of one of them.
func found(node *broker) error {
	if err := within(func() error { _, err := administer(node, "cluster", "init"); return err }); err != nil {
		return err
	}
	return within(func() error {
		status, err := statusOf(node)
		if err == nil && !status.whole() {
			err = fmt.Errorf("not all nodes vote: %+v", status)
		}
		return err
	})
}

// leader is the node that leads, by the word of all that say something.
func (c *cluster) leader(t *testing.T) *broker {
	t.Helper()
	var leader *broker
	eventually(t, "a leader of a whole cluster", func() bool {
		for _, node := range c.nodes {
			if status, err := statusOf(node); err == nil && status.whole() && status.Leader == node.name() {
				leader = node
				return true
			}
		}
		return false
	})
	return leader
}

// roaming connects as Pomerium's services do where several addresses are configured: in turn to all that are healthy.
func (c *cluster) roaming(t *testing.T) client {
	t.Helper()
	builder := manual.NewBuilderWithScheme("nodes")
	var addresses []resolver.Address
	for _, node := range c.nodes {
		addresses = append(addresses, resolver.Address{Addr: node.address})
	}
	builder.InitialState(resolver.State{Addresses: addresses})
	conn, err := dial(builder.Scheme()+":///databroker", c.nodes[0].key, grpc.WithResolvers(builder), grpc.WithDefaultServiceConfig(
		`{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}`))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return clientOn(conn)
}

const failovers = 10

// Ten leaders are killed under a Syncer and a Leaser: the copy is never thrown away, the lease is never lost.
func TestSyncerAndLeaserAcrossFailovers(t *testing.T) {
	ours(t)
	if os.Getenv("DATABROKER_FOLLOWER") != "" {
		t.Skip("the same with and without")
	}
	t.Parallel()
	c := newCluster(t)
	roaming := c.roaming(t)
	put(t, roaming, record("t", "first", ""))
	m := runSyncer(t, roaming, "t")
	eventually(t, "the copy", m.has("first"))
	l, _ := runLeaser(t, roaming, "l", 10*time.Second)
	held := l.acquired(t)

	ids := []string{"first"}
	for failover := range failovers {
		leader := c.leader(t)
		leader.end()
		id := fmt.Sprintf("after-%d", failover)
		// A call that was on its way to the node that died fails, and is made again: Envoy does so for Pomerium's services.
		if err := within(func() error {
			_, err := roaming.Put(testContext(t), &databrokerpb.PutRequest{Records: []*databrokerpb.Record{record("t", id, "")}})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		eventually(t, "the change "+id, m.has(ids...))
		eventually(t, "the answer that the lease is held", func() bool {
			_, err := roaming.AcquireLease(testContext(t), acquire("l", time.Second))
			if err == nil {
				t.Fatalf("two hold the lease after failover %d", failover)
			}
			return status.Code(err) == codes.AlreadyExists
		})
		if err := leader.start(); err != nil {
			t.Fatal(err)
		}
	}
	if m.clears() != 1 {
		t.Errorf("the copy was thrown away %d times in %d failovers", m.clears()-1, failovers)
	}
	if held.Err() != nil || len(l.holding) != 0 {
		t.Error("the lease was lost, though its holder renewed it")
	}
}
