package conformance

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/types/known/durationpb"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
)

func acquire(name string, duration time.Duration) *databrokerpb.AcquireLeaseRequest {
	return &databrokerpb.AcquireLeaseRequest{Name: name, Duration: durationpb.New(duration)}
}

func renew(name, id string, duration time.Duration) *databrokerpb.RenewLeaseRequest {
	return &databrokerpb.RenewLeaseRequest{Name: name, Id: id, Duration: durationpb.New(duration)}
}

func TestLeases(t *testing.T) {
	t.Parallel()
	c, name := shared.client(), t.Name()
	id := must[*databrokerpb.AcquireLeaseResponse](t)(c.AcquireLease(testContext(t), acquire(name, time.Minute))).GetId()
	if id == "" {
		t.Fatal("no id")
	}
	_, err := c.AcquireLease(testContext(t), acquire(name, time.Minute))
	wantStatus(t, err, codes.AlreadyExists, "lease is already taken")
	_, err = c.RenewLease(testContext(t), renew(name, "another", time.Minute))
	wantStatus(t, err, codes.AlreadyExists, "lease no longer held")
	_, err = c.RenewLease(testContext(t), renew(name, id, time.Minute))
	wantStatus(t, err, codes.OK, "")
	_, err = c.ReleaseLease(testContext(t), &databrokerpb.ReleaseLeaseRequest{Name: name, Id: "another"})
	wantStatus(t, err, codes.OK, "")
	_, err = c.AcquireLease(testContext(t), acquire(name, time.Minute))
	wantStatus(t, err, codes.AlreadyExists, "")
	_, err = c.ReleaseLease(testContext(t), &databrokerpb.ReleaseLeaseRequest{Name: name, Id: id})
	wantStatus(t, err, codes.OK, "")
	// Renewing a free lease takes it.
	_, err = c.RenewLease(testContext(t), renew(name, "mine", time.Minute))
	wantStatus(t, err, codes.OK, "")
	_, err = c.AcquireLease(testContext(t), acquire(name, time.Minute))
	wantStatus(t, err, codes.AlreadyExists, "")
}

func TestLeasesRunOut(t *testing.T) {
	t.Parallel()
	c := shared.client()
	for name, duration := range map[string]*durationpb.Duration{
		"absent": nil, "zero": durationpb.New(0), "negative": durationpb.New(-time.Hour), "short": durationpb.New(50 * time.Millisecond),
	} {
		name := t.Name() + name
		first := must[*databrokerpb.AcquireLeaseResponse](t)(c.AcquireLease(testContext(t), &databrokerpb.AcquireLeaseRequest{Name: name, Duration: duration})).GetId()
		eventually(t, name+" runs out", func() bool {
			_, err := c.AcquireLease(testContext(t), acquire(name, time.Minute))
			return err == nil
		})
		_, err := c.RenewLease(testContext(t), renew(name, first, time.Minute))
		wantStatus(t, err, codes.AlreadyExists, "lease no longer held")
	}
	// Late, but nobody else came.
	name := t.Name() + "late"
	id := must[*databrokerpb.AcquireLeaseResponse](t)(c.AcquireLease(testContext(t), acquire(name, 0))).GetId()
	_, err := c.RenewLease(testContext(t), renew(name, id, time.Minute))
	wantStatus(t, err, codes.OK, "")
}

func TestLeasesSurviveARestart(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	id := must[*databrokerpb.AcquireLeaseResponse](t)(b.client().AcquireLease(testContext(t), acquire("l", time.Hour))).GetId()
	b.restart(t)
	_, err := b.client().AcquireLease(testContext(t), acquire("l", time.Hour))
	wantStatus(t, err, codes.AlreadyExists, "")
	_, err = b.client().RenewLease(testContext(t), renew("l", id, time.Hour))
	wantStatus(t, err, codes.OK, "")
}

// BUG: NUL in a lease id cuts it.
func TestBugNulInALeaseId(t *testing.T) {
	ours(t)
	t.Parallel()
	c := shared.client()
	_, err := c.RenewLease(testContext(t), renew(t.Name(), "me\x00you", time.Minute))
	wantStatus(t, err, codes.OK, "")
	_, err = c.RenewLease(testContext(t), renew(t.Name(), "me", time.Minute))
	wantStatus(t, err, codes.AlreadyExists, "")
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	set := &databrokerpb.Checkpoint{ServerVersion: 1<<64 - 1, RecordVersion: 7}
	must[*databrokerpb.SetCheckpointResponse](t)(b.client().checkpoint.SetCheckpoint(testContext(t), &databrokerpb.SetCheckpointRequest{Checkpoint: set}))
	b.restart(t)
	got := must[*databrokerpb.GetCheckpointResponse](t)(b.client().checkpoint.GetCheckpoint(testContext(t), new(databrokerpb.GetCheckpointRequest)))
	if got.GetCheckpoint().GetServerVersion() != set.ServerVersion || got.GetCheckpoint().GetRecordVersion() != 7 || got.GetIsLeader() {
		t.Errorf("got %v", got)
	}
}

func endpoints(list *registrypb.ServiceList) []string {
	endpoints := []string{}
	for _, service := range list.GetServices() {
		endpoints = append(endpoints, service.GetKind().String()+" "+service.GetEndpoint())
	}
	return endpoints
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	c := newBroker(t).client()
	watch := must[registrypb.Registry_WatchClient](t)(c.registry.Watch(testContext(t), new(registrypb.ListRequest)))
	proxies := must[registrypb.Registry_WatchClient](t)(c.registry.Watch(testContext(t), &registrypb.ListRequest{Kinds: []registrypb.ServiceKind{registrypb.ServiceKind_PROXY}}))
	for _, watch := range []registrypb.Registry_WatchClient{watch, proxies} {
		if first := endpoints(must[*registrypb.ServiceList](t)(watch.Recv())); len(first) != 0 {
			t.Fatalf("the first list is sent at once, even empty; got %v", first)
		}
	}
	answer := must[*registrypb.RegisterResponse](t)(c.registry.Report(testContext(t), &registrypb.RegisterRequest{Services: []*registrypb.Service{
		{Kind: registrypb.ServiceKind_PROXY, Endpoint: "http://b"},
		{Kind: registrypb.ServiceKind_AUTHORIZE, Endpoint: "http://z"},
		{Kind: registrypb.ServiceKind_PROXY, Endpoint: "http://a"},
	}}))
	all := []string{"AUTHORIZE http://z", "PROXY http://a", "PROXY http://b"}
	if got := endpoints(must[*registrypb.ServiceList](t)(watch.Recv())); !slices.Equal(got, all) {
		t.Errorf("watched %v", got)
	}
	if got := endpoints(must[*registrypb.ServiceList](t)(proxies.Recv())); !slices.Equal(got, all[1:]) {
		t.Errorf("watched %v", got)
	}
	if got := endpoints(must[*registrypb.ServiceList](t)(c.registry.List(testContext(t), new(registrypb.ListRequest)))); !slices.Equal(got, all) {
		t.Errorf("listed %v", got)
	}
	t.Run("BugCallBackAfterTheServicesRanOut", func(t *testing.T) {
		ours(t)
		if after := answer.GetCallBackAfter().AsDuration(); after <= 0 || after > 20*time.Second {
			t.Errorf("call back after %v, and services live 30 s", after)
		}
	})
	t.Run("BugExpiryIsNotPushed", func(t *testing.T) {
		ours(t)
		ctx := t.Context() // services live 30 s
		watch := must[registrypb.Registry_WatchClient](t)(c.registry.Watch(ctx, new(registrypb.ListRequest)))
		must[*registrypb.ServiceList](t)(watch.Recv())
		if got := endpoints(must[*registrypb.ServiceList](t)(watch.Recv())); len(got) != 0 {
			t.Errorf("pushed %v", got)
		}
	})
}

func TestHealthOfAnyServiceNeedsNoToken(t *testing.T) {
	t.Parallel()
	client := healthpb.NewHealthClient(rawConn(t))
	for _, service := range []string{"", "pomerium-databroker", "databroker.DataBrokerService", "no such thing"} {
		if isPeer() && service != "" {
			continue // the stand-in's health is the library's
		}
		answer := must[*healthpb.HealthCheckResponse](t)(client.Check(testContext(t), &healthpb.HealthCheckRequest{Service: service}))
		if answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v", service, answer)
		}
	}
}

func TestReflectionNeedsNoToken(t *testing.T) {
	t.Parallel()
	want := []string{"databroker.CheckpointService", "databroker.DataBrokerService", "registry.Registry"}
	check := func(names []string) {
		t.Helper()
		for _, name := range want {
			if !slices.Contains(names, name) {
				t.Errorf("%s is not among %v", name, names)
			}
		}
	}
	v1 := must[reflectionpb.ServerReflection_ServerReflectionInfoClient](t)(
		reflectionpb.NewServerReflectionClient(rawConn(t)).ServerReflectionInfo(testContext(t)))
	if err := v1.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, service := range must[*reflectionpb.ServerReflectionResponse](t)(v1.Recv()).GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	check(names)

	alpha := must[reflectionalphapb.ServerReflection_ServerReflectionInfoClient](t)(
		reflectionalphapb.NewServerReflectionClient(rawConn(t)).ServerReflectionInfo(testContext(t)))
	if err := alpha.Send(&reflectionalphapb.ServerReflectionRequest{MessageRequest: &reflectionalphapb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	names = names[:0]
	for _, service := range must[*reflectionalphapb.ServerReflectionResponse](t)(alpha.Recv()).GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	check(names)
}

// Unknown methods and services are answered, not served.
func TestUnknownMethods(t *testing.T) {
	t.Parallel()
	c := shared.client()
	for _, method := range []string{"/databroker.DataBrokerService/Nope", "/no.Service/Nope"} {
		err := c.conn.Invoke(testContext(t), method, new(databrokerpb.GetRequest), new(databrokerpb.GetResponse))
		wantStatus(t, err, codes.Unimplemented, "")
	}
}
