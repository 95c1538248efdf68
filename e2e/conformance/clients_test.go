package conformance

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pomerium/pomerium/pkg/databrokerutil"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

func init() { databrokerutil.DebugUseFasterBackoff.Store(true) }

// mirror is what a Syncer keeps.
type mirror struct {
	client  databrokerpb.DataBrokerServiceClient
	mu      sync.Mutex
	cleared int
	records map[string]*databrokerpb.Record
}

func (m *mirror) GetDataBrokerServiceClient() databrokerpb.DataBrokerServiceClient { return m.client }

func (m *mirror) ClearRecords(context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cleared++
	m.records = map[string]*databrokerpb.Record{}
}

func (m *mirror) UpdateRecords(_ context.Context, _ uint64, records []*databrokerpb.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, record := range records {
		if record.GetDeletedAt() != nil {
			delete(m.records, record.GetId())
		} else {
			m.records[record.GetId()] = record
		}
	}
}

func (m *mirror) has(ids ...string) func() bool {
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, id := range ids {
			if m.records[id] == nil {
				return false
			}
		}
		return len(m.records) == len(ids)
	}
}

func (m *mirror) clears() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cleared
}

func runSyncer(t *testing.T, c client, recordType string) *mirror {
	t.Helper()
	m := &mirror{client: c}
	ctx, cancel := context.WithCancel(t.Context())
	syncer := databrokerutil.NewSyncer(ctx, t.Name(), m, databrokerutil.WithTypeURL(recordType))
	done := make(chan struct{})
	go func() { defer close(done); _ = syncer.Run(ctx) }()
	t.Cleanup(func() { cancel(); _ = syncer.Close(); <-done })
	return m
}

func TestSyncerFollowsAcrossARestartWithoutAResync(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	c := b.client()
	put(t, c, record("t", "a", ""), record("other", "x", ""))
	m := runSyncer(t, c, "t")
	eventually(t, "the copy", m.has("a"))
	put(t, c, record("t", "b", ""))
	eventually(t, "a change", m.has("a", "b"))

	for range 3 {
		b.restart(t)
	}
	put(t, b.client(), record("t", "c", ""), deleted("t", "a"))
	eventually(t, "changes after the restarts", m.has("b", "c"))
	if m.clears() != 1 {
		t.Errorf("the copy was thrown away %d times", m.clears()-1)
	}
}

// A server that was killed loses nothing that it had announced.
func TestSyncerFollowsAcrossAKill(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	c := b.client()
	put(t, c, record("t", "a", ""))
	m := runSyncer(t, c, "")
	eventually(t, "the copy", m.has("a"))
	put(t, c, record("t", "b", ""))
	eventually(t, "a change", m.has("a", "b"))
	b.end()
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	put(t, b.client(), record("t", "c", ""))
	eventually(t, "changes after the kill", m.has("a", "b", "c"))
	if m.clears() != 1 {
		t.Errorf("the copy was thrown away %d times", m.clears()-1)
	}
}

func TestSyncerStartsOverAfterClear(t *testing.T) {
	ours(t) // of the peer's streams it is not known when they end
	t.Parallel()
	c := newBroker(t).client()
	put(t, c, record("t", "a", ""))
	m := runSyncer(t, c, "t")
	eventually(t, "the copy", m.has("a"))
	if _, err := c.Clear(testContext(t), nil); err != nil {
		t.Fatal(err)
	}
	put(t, c, record("t", "b", ""))
	eventually(t, "the new copy", m.has("b"))
}

// leaseholder runs while it holds a lease.
type leaseholder struct {
	client  databrokerpb.DataBrokerServiceClient
	holding chan context.Context
}

func (l *leaseholder) GetDataBrokerServiceClient() databrokerpb.DataBrokerServiceClient {
	return l.client
}

func (l *leaseholder) RunLeased(ctx context.Context) error {
	l.holding <- ctx
	<-ctx.Done()
	return ctx.Err()
}

func runLeaser(t *testing.T, c databrokerpb.DataBrokerServiceClient, name string, ttl time.Duration) (l *leaseholder, release func()) {
	t.Helper()
	l = &leaseholder{client: c, holding: make(chan context.Context, 16)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = databrokerutil.NewLeaser(name, ttl, l).Run(ctx) }()
	release = func() { cancel(); <-done }
	t.Cleanup(release)
	return l, release
}

func (l *leaseholder) acquired(t *testing.T) context.Context {
	t.Helper()
	select {
	case ctx := <-l.holding:
		return ctx
	case <-time.After(patience):
		t.Fatal("the lease is not acquired")
		return nil
	}
}

func TestLeaserHandsOver(t *testing.T) {
	t.Parallel()
	c := shared.client()
	first, release := runLeaser(t, c, t.Name(), 2*time.Second)
	held := first.acquired(t)
	second, _ := runLeaser(t, c, t.Name(), 2*time.Second)
	// Longer than the lease: it is renewed, and the other does not get it.
	select {
	case <-second.holding:
		t.Fatal("two hold the lease")
	case <-held.Done():
		t.Fatal("the lease is lost")
	case <-time.After(3 * time.Second):
	}
	release()
	second.acquired(t)
}

// overheard notes the id of the lease that is acquired through it.
type overheard struct {
	databrokerpb.DataBrokerServiceClient
	id chan string
}

func (o overheard) AcquireLease(ctx context.Context, in *databrokerpb.AcquireLeaseRequest, opts ...grpc.CallOption) (*databrokerpb.AcquireLeaseResponse, error) {
	out, err := o.DataBrokerServiceClient.AcquireLease(ctx, in, opts...)
	if err == nil {
		o.id <- out.GetId()
	}
	return out, err
}

func TestLeaserLearnsThatItsLeaseIsLost(t *testing.T) {
	t.Parallel()
	c := shared.client()
	ear := overheard{DataBrokerServiceClient: c, id: make(chan string, 16)}
	l, _ := runLeaser(t, ear, t.Name(), 2*time.Second)
	held := l.acquired(t)
	must[*emptypb.Empty](t)(c.ReleaseLease(testContext(t), &databrokerpb.ReleaseLeaseRequest{Name: t.Name(), Id: <-ear.id}))
	must[*databrokerpb.AcquireLeaseResponse](t)(c.AcquireLease(testContext(t), acquire(t.Name(), time.Minute)))
	select {
	case <-held.Done():
	case <-time.After(patience):
		t.Fatal("the holder does not notice")
	}
}

// Within its time a lease is not lost by a restart: the holder either never notices, or acquires it again.
func TestLeaserAcrossARestart(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	l, _ := runLeaser(t, b.client(), "l", 20*time.Second)
	held := l.acquired(t)
	b.restart(t)
	_, err := b.client().AcquireLease(testContext(t), acquire("l", time.Second))
	if err == nil {
		t.Error("the lease was free after the restart")
	}
	if held.Err() != nil {
		t.Error("the holder lost it")
	}
}
