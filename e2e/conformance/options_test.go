package conformance

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/grpc/session"
)

func patchRequest(mask []string, records ...*databrokerpb.Record) *databrokerpb.PatchRequest {
	request := &databrokerpb.PatchRequest{Records: records}
	if mask != nil {
		request.FieldMask = &fieldmaskpb.FieldMask{Paths: mask}
	}
	return request
}

func getOptions(t *testing.T, c client, recordType string) *databrokerpb.Options {
	t.Helper()
	answer := must[*databrokerpb.GetOptionsResponse](t)(c.GetOptions(testContext(t), &databrokerpb.GetOptionsRequest{Type: recordType}))
	return answer.GetOptions()
}

func wantDefaultOptions(t *testing.T, c client) {
	t.Helper()
	quarterHour := durationpb.New(15 * time.Minute)
	for name, want := range map[string]*databrokerpb.Options{
		"session.SessionBindingRequest": {Capacity: proto.Uint64(50_000), IndexableFields: []string{"key"}, Ttl: quarterHour},
		"session.SessionBinding":        {IndexableFields: []string{"session_id", "user_id"}},
		"session.IdentityBinding":       {IndexableFields: []string{"user_id"}},
		"oauth21.UpstreamMCPToken":      {IndexableFields: []string{"user_id", "route_id"}},
		"oauth21.PendingUpstreamAuth":   {IndexableFields: []string{"state_id"}, Ttl: quarterHour},
	} {
		if got := getOptions(t, c, "type.googleapis.com/"+name); !proto.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestDefaultOptionsAreInstalledAtStart(t *testing.T) {
	t.Parallel()
	wantDefaultOptions(t, newBroker(t).client())
}

func TestOptionsAreReplacedWhole(t *testing.T) {
	t.Parallel()
	c := shared.client()
	_, err := c.GetOptions(testContext(t), &databrokerpb.GetOptionsRequest{Type: t.Name()})
	wantStatus(t, err, codes.NotFound, "")
	_, err = c.GetOptions(testContext(t), new(databrokerpb.GetOptionsRequest))
	wantStatus(t, err, codes.InvalidArgument, "options req type is empty")

	first := &databrokerpb.Options{Capacity: proto.Uint64(7), IndexableFields: []string{"a", "b"}, Ttl: durationpb.New(time.Hour)}
	answer := must[*databrokerpb.SetOptionsResponse](t)(c.SetOptions(testContext(t), &databrokerpb.SetOptionsRequest{Type: t.Name(), Options: first}))
	if !proto.Equal(answer.GetOptions(), first) || !proto.Equal(getOptions(t, c, t.Name()), first) {
		t.Errorf("answered %v", answer)
	}
	second := &databrokerpb.Options{IndexableFields: []string{"c"}}
	setOptions(t, c, t.Name(), second)
	if got := getOptions(t, c, t.Name()); !proto.Equal(got, second) {
		t.Errorf("got %v", got)
	}
	// Removing them may be answered with NOT_FOUND by a server that reads what it has just removed.
	_, err = c.SetOptions(testContext(t), &databrokerpb.SetOptionsRequest{Type: t.Name(), Options: new(databrokerpb.Options)})
	if !isPeer() {
		wantStatus(t, err, codes.OK, "")
	}
	_, err = c.GetOptions(testContext(t), &databrokerpb.GetOptionsRequest{Type: t.Name()})
	wantStatus(t, err, codes.NotFound, "")
}

// BUG: SetOptions without options stores nothing in its place, and the next Put ends the process.
func TestBugSetOptionsWithoutOptions(t *testing.T) {
	ours(t)
	t.Parallel()
	c := shared.client()
	setOptions(t, c, t.Name(), &databrokerpb.Options{Capacity: proto.Uint64(1)})
	setOptions(t, c, t.Name(), nil)
	put(t, c, record(t.Name(), "1", ""), record(t.Name(), "2", ""))
	if got := query(t, c, t.Name(), nil); len(got) != 2 {
		t.Errorf("got %v", got)
	}
	_, err := c.GetOptions(testContext(t), &databrokerpb.GetOptionsRequest{Type: t.Name()})
	wantStatus(t, err, codes.NotFound, "")
}

func TestSetOptionsOfTheEmptyTypeIsRefused(t *testing.T) {
	ours(t)
	t.Parallel()
	_, err := shared.client().SetOptions(testContext(t), &databrokerpb.SetOptionsRequest{Options: &databrokerpb.Options{Capacity: proto.Uint64(1)}})
	wantStatus(t, err, codes.InvalidArgument, "")
}

func TestCapacityKeepsTheNewest(t *testing.T) {
	t.Parallel()
	c := shared.client()
	put(t, c, record(t.Name(), "a", ""), record(t.Name(), "b", ""), record(t.Name(), "c", ""))
	setOptions(t, c, t.Name(), &databrokerpb.Options{Capacity: proto.Uint64(3)})
	if got := query(t, c, t.Name(), nil); len(got) != 3 {
		t.Fatalf("setting options deletes nothing, got %v", got)
	}
	// A patch makes a record new again.
	must[*databrokerpb.PatchResponse](t)(c.Patch(testContext(t), patchRequest(nil, record(t.Name(), "a", ""))))
	answer := put(t, c, record(t.Name(), "d", ""), record(t.Name(), "e", ""))
	if got := query(t, c, t.Name(), nil); !slices.Equal(got, []string{"a", "d", "e"}) {
		t.Errorf("got %v", got)
	}
	after := answer.GetRecords()[1].GetVersion()
	evicted, _ := changes(t, c, t.Name(), after)
	if got := ids(evicted); !slices.Equal(got, []string{"c", "b"}) {
		t.Fatalf("evicted from the newest to the oldest, got %v", got)
	}
	for n, record := range evicted {
		if record.GetDeletedAt() == nil || record.GetVersion() <= after || (n > 0 && record.GetVersion() <= evicted[n-1].GetVersion()) {
			t.Errorf("not an ordinary tombstone: %v", record)
		}
	}
}

func TestCapacityZeroKeepsNothing(t *testing.T) {
	t.Parallel()
	c := shared.client()
	setOptions(t, c, t.Name(), &databrokerpb.Options{Capacity: proto.Uint64(0)})
	answer := put(t, c, record(t.Name(), "a", ""))
	if len(answer.GetRecords()) != 1 || exists(t, c, t.Name(), "a") {
		t.Errorf("answered %v", answer)
	}
}

// A broker sweeps each minute, and when it starts to lead: the restart is there so that nobody waits for a minute. The peer's
// store leaves sweeping to its server.
func TestTTLDeletesWhatWasNotChangedForSoLong(t *testing.T) {
	ours(t)
	t.Parallel()
	b := newBroker(t)
	c := b.client()
	setOptions(t, c, "brief", &databrokerpb.Options{Ttl: durationpb.New(10 * time.Millisecond)})
	for _, never := range []time.Duration{0, -time.Hour} {
		setOptions(t, c, fmt.Sprint("ttl ", never), &databrokerpb.Options{Ttl: durationpb.New(never)})
		put(t, c, record(fmt.Sprint("ttl ", never), "a", ""))
	}
	setOptions(t, c, "long", &databrokerpb.Options{Ttl: durationpb.New(time.Hour)})
	put(t, c, record("long", "a", ""), record("no ttl", "a", ""))
	stored := put(t, c, record("brief", "a", "data"), record("brief", "b", "data")).GetRecords()
	before := serverInfo(t, c)
	b.restartAll(t)

	stream := must[databrokerpb.DataBrokerService_SyncClient](t)(c.Sync(testContext(t), &databrokerpb.SyncRequest{
		ServerVersion: before.GetServerVersion(), RecordVersion: before.GetLatestRecordVersion(), Type: "brief",
	}))
	for _, was := range stored {
		tombstone := recvRecord(t, stream)
		if tombstone.GetId() != was.GetId() || tombstone.GetDeletedAt() == nil || tombstone.GetVersion() <= before.GetLatestRecordVersion() {
			t.Errorf("not a tombstone of %s: %v", was.GetId(), tombstone)
		}
		if !proto.Equal(tombstone.GetData(), was.GetData()) {
			t.Errorf("the tombstone has other data than was stored: %v", tombstone)
		}
		if exists(t, c, "brief", was.GetId()) {
			t.Errorf("%s was announced as deleted, and is there", was.GetId())
		}
	}
	for _, recordType := range []string{"long", "no ttl", "ttl 0s", "ttl -1h0m0s"} {
		if !exists(t, c, recordType, "a") {
			t.Errorf("type %q: deleted", recordType)
		}
	}
	if info := serverInfo(t, c); info.GetLatestRecordVersion() != before.GetLatestRecordVersion()+2 {
		t.Errorf("more was deleted than should be: %v, then %v", before, info)
	}
}

func binding(t *testing.T, recordType, id, user string) *databrokerpb.Record {
	t.Helper()
	return &databrokerpb.Record{Type: recordType, Id: id, Data: pack(t, &session.SessionBinding{
		Protocol: "ssh", UserId: user, SessionId: "session of " + id, Details: map[string]string{"host": "Box-" + id},
	})}
}

func TestIndexedFields(t *testing.T) {
	t.Parallel()
	c := shared.client()
	// Some before the index, some after.
	put(t, c, binding(t, t.Name(), "b", "u1"), binding(t, t.Name(), "a", "u1"))
	setOptions(t, c, t.Name(), &databrokerpb.Options{IndexableFields: []string{"user_id", "details.host", "issued_at"}})
	put(t, c, binding(t, t.Name(), "c", "u1"), binding(t, t.Name(), "d", "u2"), binding(t, t.Name(), "e", ""))
	for _, test := range []struct {
		filter object
		want   []string
	}{
		{object{"user_id": "u1"}, []string{"a", "b", "c"}},
		{object{"user_id": "u"}, []string{}},
		{object{"user_id": ""}, []string{"e"}},
		{object{"user_id": list("u2", "u1")}, []string{"a", "b", "c", "d"}},
		{object{"details.host": "Box-d"}, []string{"d"}},
		{object{"details": object{"host": "Box-d"}}, []string{"d"}},
		{object{"user_id": "u1", "details.host": "Box-c"}, []string{"c"}},
		{object{"$or": list(object{"user_id": "u2"}, object{"id": "a"})}, []string{"a", "d"}},
		{object{"$and": list(object{"user_id": "u1"}, object{"id": list("a", "d")})}, []string{"a"}},
	} {
		if got := query(t, c, t.Name(), test.filter); !slices.Equal(got, test.want) {
			t.Errorf("%v: got %v, want %v", test.filter, got, test.want)
		}
	}
}

// BUG: deletes remove index entries computed from the request's data, evictions remove none, and a lookup does not look
// at the value again: a re-created record is found by what it once was.
func TestBugStaleIndexEntries(t *testing.T) {
	ours(t)
	t.Parallel()
	c := shared.client()
	for _, test := range []struct {
		name   string
		remove func(t *testing.T, recordType string)
	}{
		{"delete", func(t *testing.T, recordType string) { put(t, c, deleted(recordType, "x")) }},
		{"patch with deleted_at", func(t *testing.T, recordType string) {
			must[*databrokerpb.PatchResponse](t)(c.Patch(testContext(t), patchRequest(nil, deleted(recordType, "x"))))
		}},
		{"capacity", func(t *testing.T, recordType string) {
			setOptions(t, c, recordType, &databrokerpb.Options{Capacity: proto.Uint64(1), IndexableFields: []string{"user_id"}})
			put(t, c, binding(t, recordType, "y", "someone"))
		}},
		{"overwrite", func(t *testing.T, recordType string) { put(t, c, record(recordType, "x", "")) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			setOptions(t, c, t.Name(), &databrokerpb.Options{IndexableFields: []string{"user_id"}})
			put(t, c, binding(t, t.Name(), "x", "old"))
			test.remove(t, t.Name())
			wantFoundByItsNewValueAlone(t, c, t.Name())
		})
	}
}

// wantFoundByItsNewValueAlone puts another user into the record x, which the user old was in.
func wantFoundByItsNewValueAlone(t *testing.T, c client, recordType string) {
	t.Helper()
	put(t, c, binding(t, recordType, "x", "new"))
	if got := query(t, c, recordType, object{"user_id": "old"}); len(got) != 0 {
		t.Errorf("found by its old value: %v", got)
	}
	if got := query(t, c, recordType, object{"user_id": "new"}); !slices.Equal(got, []string{"x"}) {
		t.Errorf("not found by its new value: %v", got)
	}
}

// BUG: nor are entries removed with a record that has outlived its TTL.
func TestBugStaleIndexEntriesOfExpiredRecords(t *testing.T) {
	ours(t)
	t.Parallel()
	b := newBroker(t)
	c := b.client()
	setOptions(t, c, "t", &databrokerpb.Options{Ttl: durationpb.New(10 * time.Millisecond), IndexableFields: []string{"user_id"}})
	put(t, c, binding(t, "t", "x", "old"))
	b.restartAll(t) // it sweeps then
	eventually(t, "x is gone", func() bool { return !exists(t, c, "t", "x") })
	setOptions(t, c, "t", &databrokerpb.Options{IndexableFields: []string{"user_id"}})
	wantFoundByItsNewValueAlone(t, c, "t")
}

// BUG: NUL in a type, a field or a value corrupts the key of the index, which is split at each of them.
func TestBugNulInIndexKeys(t *testing.T) {
	ours(t)
	t.Parallel()
	c := shared.client()
	with := func(recordType, id string, data *session.SessionBinding) *databrokerpb.Record {
		return &databrokerpb.Record{Type: recordType, Id: id, Data: pack(t, data)}
	}
	one, other := t.Name(), t.Name()+"\x00details.a"
	setOptions(t, c, one, &databrokerpb.Options{IndexableFields: []string{"details.a", "details.a\x00user_id"}})
	setOptions(t, c, other, &databrokerpb.Options{IndexableFields: []string{"user_id"}})
	// Type, field and value joined with NUL are the same for all of them.
	put(t, c,
		with(one, "in the value", &session.SessionBinding{Details: map[string]string{"a": "user_id\x00v"}}),
		with(one, "in the field", &session.SessionBinding{Details: map[string]string{"a\x00user_id": "v"}}),
		with(other, "in the type", &session.SessionBinding{UserId: "v"}),
	)
	for _, test := range []struct {
		recordType, field, value string
		want                     []string
	}{
		{one, "details.a", "user_id\x00v", []string{"in the value"}},
		{one, "details.a\x00user_id", "v", []string{"in the field"}},
		{other, "user_id", "v", []string{"in the type"}},
		{one, "details.a", "user_id", []string{}},
		{one, "details.a", "", []string{"in the field"}},
		{one, "details.a\x00user_id", "", []string{"in the value"}},
	} {
		if got := query(t, c, test.recordType, object{test.field: test.value}); !slices.Equal(got, test.want) {
			t.Errorf("%q = %q: got %q, want %q", test.field, test.value, got, test.want)
		}
	}
}

// BUG: an empty id in an index makes every lookup that meets it fail.
func TestBugEmptyIdInAnIndex(t *testing.T) {
	ours(t)
	t.Parallel()
	c := shared.client()
	setOptions(t, c, t.Name(), &databrokerpb.Options{IndexableFields: []string{"user_id"}})
	put(t, c, binding(t, t.Name(), "", "u"), binding(t, t.Name(), "a", "u"), binding(t, t.Name(), "b", "v"))
	for _, filter := range []object{
		{"user_id": "u"},
		{"user_id": list("nobody", "u")},
		{"$and": list(object{"user_id": list("u", "v")}, object{"id": list("", "a")})},
	} {
		if got := query(t, c, t.Name(), filter); !slices.Equal(got, []string{"", "a"}) {
			t.Errorf("%v: got %q", filter, got)
		}
	}
}

// BUG: removing the index of `user` also removes that of `user_id`.
func TestBugRemovingAnIndexRemovesThoseItPrefixes(t *testing.T) {
	ours(t)
	t.Parallel()
	c := shared.client()
	setOptions(t, c, t.Name(), &databrokerpb.Options{IndexableFields: []string{"user", "user_id"}})
	put(t, c, binding(t, t.Name(), "a", "u"))
	setOptions(t, c, t.Name(), &databrokerpb.Options{IndexableFields: []string{"user_id"}})
	if got := query(t, c, t.Name(), object{"user_id": "u"}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("got %v", got)
	}
}

// BUG: a leaf that is no string keeps the record out of all indexes.
func TestBugANonStringLeafHidesTheRecord(t *testing.T) {
	ours(t)
	t.Parallel()
	c := shared.client()
	setOptions(t, c, t.Name(), &databrokerpb.Options{IndexableFields: []string{"refresh_disabled", "user_id"}})
	data := pack(t, &session.Session{UserId: "u", RefreshDisabled: true})
	put(t, c, &databrokerpb.Record{Type: t.Name(), Id: "s", Data: data})
	if got := query(t, c, t.Name(), object{"user_id": "u"}); !slices.Equal(got, []string{"s"}) {
		t.Errorf("got %v", got)
	}
}

func TestOptionsFramesOfStreams(t *testing.T) {
	t.Parallel()
	c := newBroker(t).client()
	options := map[string]*databrokerpb.Options{
		"a": {Capacity: proto.Uint64(10)}, "b": {IndexableFields: []string{"f"}}, "empty": {Capacity: proto.Uint64(3)},
	}
	for recordType, options := range options {
		setOptions(t, c, recordType, options)
	}
	put(t, c, record("b", "1", ""), record("a", "1", ""), record("none", "1", ""))
	for recordType, want := range map[string][]string{"": {"a", "b"}, "a": {"a"}, "empty": {"empty"}, "none": {}} {
		_, frames := changes(t, c, recordType, 0)
		got := []string{}
		for _, frame := range frames {
			got = append(got, frame.GetTypeURL())
			if !proto.Equal(frame.GetOptions(), options[frame.GetTypeURL()]) {
				t.Errorf("%v", frame)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("type %q: got %v, want %v", recordType, got, want)
		}
	}
	// Before the first record.
	stream := must[databrokerpb.DataBrokerService_SyncClient](t)(c.Sync(testContext(t), &databrokerpb.SyncRequest{
		ServerVersion: serverInfo(t, c).GetServerVersion(), Wait: proto.Bool(false),
	}))
	first := must[*databrokerpb.SyncResponse](t)(stream.Recv())
	if first.GetOptions() == nil {
		t.Errorf("the first frame is %v", first)
	}
}

func TestSyncLatestOrder(t *testing.T) {
	t.Parallel()
	c := newBroker(t).client()
	setOptions(t, c, "b", &databrokerpb.Options{Capacity: proto.Uint64(10)})
	put(t, c, record("b", "2", ""), record("a", "9", ""), record("b", "10", ""), record("b", "gone", ""), record("B", "1", ""))
	put(t, c, deleted("b", "gone"))
	info := serverInfo(t, c)
	for recordType, want := range map[string]string{
		"":        "B/1 a/9 b/10 b/2 options(b) versions",
		"b":       "b/10 b/2 options(b) versions",
		"a":       "a/9 versions",
		"nothing": "versions",
	} {
		got := ""
		for _, frame := range latest(t, c, recordType) {
			switch {
			case frame.GetRecord() != nil:
				got += fmt.Sprintf("%s/%s ", frame.GetRecord().GetType(), frame.GetRecord().GetId())
			case frame.GetOptions() != nil:
				got += fmt.Sprintf("options(%s) ", frame.GetOptions().GetTypeURL())
			default:
				got += "versions"
				if v := frame.GetVersions(); v.GetServerVersion() != info.GetServerVersion() || v.GetLatestRecordVersion() != info.GetLatestRecordVersion() {
					t.Errorf("versions %v, want %v", v, info)
				}
			}
		}
		if got != want {
			t.Errorf("type %q: got %s, want %s", recordType, got, want)
		}
	}
}
