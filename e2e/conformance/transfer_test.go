package conformance

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

// newPeer starts ../peer: another implementation's store behind the same interface.
func newPeer(t *testing.T) *broker {
	t.Helper()
	b := &broker{binary: filepath.Join(t.TempDir(), "peer"), peer: true, dir: t.TempDir()}
	if output, err := exec.Command("go", "build", "-C", "../peer", "-o", b.binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("the peer does not build: %v\n%s", err, output)
	}
	b.startFor(t)
	return b
}

// tool runs one of our binary's tools against a server.
func tool(t *testing.T, server *broker, line ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, os.Getenv("DATABROKER_BIN"), line...)
	command.Env = []string{
		"DATABROKER_ADDRESS=http://" + server.address,
		"SHARED_SECRET=" + base64.StdEncoding.EncodeToString(server.key),
	}
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("databroker %s: %v\n%s", strings.Join(line, " "), err, output)
	}
}

// oddRecords are hard to carry: odd keys, data of unknown types, absent, empty, broken and large data, unknown fields in
// data. Unknown fields of the record itself are not among them: the peer's store drops those.
func oddRecords(t *testing.T) []*databrokerpb.Record {
	t.Helper()
	raw := func(recordType, id, typeURL string, value []byte) *databrokerpb.Record {
		return &databrokerpb.Record{Type: recordType, Id: id, Data: &anypb.Any{TypeUrl: typeURL, Value: value}}
	}
	records := []*databrokerpb.Record{
		raw("odd", "\n\"\\é=&%2F", "example.com/no.Such", []byte{0xff, 0}),
		raw("odd", "empty data", "", nil),
		raw("odd", "broken data", "type.googleapis.com/session.Session", []byte{0x0a, 0xff}),
		raw("odd", "large data", "a/b", bytes.Repeat([]byte{7}, 3<<20)),
		{Type: "odd", Id: "no data"},
		raw("odd", "unknown fields", "type.googleapis.com/session.SessionBinding", []byte{0x0a, 1, 'p', 0xc2, 0x3e, 1, 'x'}),
		fields(t, "structs", "1", object{"id": "1", "list": list(1.5, nil, true, "x"), "object": object{"a": "b"}}),
	}
	for n := range 2500 {
		records = append(records, binding(t, "type.googleapis.com/session.SessionBinding", fmt.Sprintf("%05d", n), fmt.Sprint("user ", n%7)))
	}
	return records
}

// moved is a record without what each server gives anew.
func moved(record *databrokerpb.Record) *databrokerpb.Record {
	record = proto.CloneOf(record)
	record.Version, record.ModifiedAt = 0, nil
	return record
}

// wantSame compares records and options of two servers.
func wantSame(t *testing.T, got, want client) {
	t.Helper()
	gotFrames, wantFrames := latest(t, got, ""), latest(t, want, "")
	if len(gotFrames) != len(wantFrames) {
		t.Fatalf("%d frames, want %d", len(gotFrames), len(wantFrames))
	}
	for n := range wantFrames {
		if record := wantFrames[n].GetRecord(); record != nil && !proto.Equal(moved(gotFrames[n].GetRecord()), moved(record)) {
			t.Errorf("record %d: got %.200v, want %.200v", n, gotFrames[n].GetRecord(), record)
		} else if options := wantFrames[n].GetOptions(); !proto.Equal(gotFrames[n].GetOptions(), options) {
			t.Errorf("options: got %v, want %v", gotFrames[n].GetOptions(), options)
		}
	}
}

// contents is an export without its header, which names the server.
func contents(t *testing.T, file string) string {
	t.Helper()
	_, contents, _ := strings.Cut(string(must[[]byte](t)(os.ReadFile(file))), "\n")
	return contents
}

// What moves to another implementation and back is the same, byte for byte.
func TestExportsMoveToThePeerAndBack(t *testing.T) {
	ours(t)
	t.Parallel()
	from, through, to := newBroker(t), newPeer(t), newBroker(t)
	put(t, from.client(), oddRecords(t)...)
	options := map[string]*databrokerpb.Options{
		"odd": {Capacity: proto.Uint64(100), Ttl: durationpb.New(time.Hour + 5*time.Nanosecond), IndexableFields: []string{"user_id", "details.host"}},
		// Other than what servers install by themselves.
		"type.googleapis.com/session.SessionBinding": {Capacity: proto.Uint64(4000), IndexableFields: []string{"user_id"}},
	}
	for recordType, options := range options {
		setOptions(t, from.client(), recordType, options)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }

	tool(t, from, "export", "--output", file("ours"))
	tool(t, through, "import", file("ours"))
	tool(t, through, "export", "--output", file("peer's"))
	tool(t, to, "import", file("peer's"))
	tool(t, to, "export", "--output", file("ours again"))

	wantSame(t, through.client(), from.client())
	wantSame(t, to.client(), from.client())
	for recordType, want := range options {
		for name, server := range map[string]*broker{"the peer": through, "the copy": to} {
			if got := getOptions(t, server.client(), recordType); !proto.Equal(got, want) {
				t.Errorf("options of %s in %s: got %v, want %v", recordType, name, got, want)
			}
		}
	}
	// Indexes are built anew.
	for name, server := range map[string]*broker{"the peer": through, "the copy": to} {
		got := query(t, server.client(), "type.googleapis.com/session.SessionBinding", object{"user_id": "user 3"})
		if len(got) != 357 {
			t.Errorf("%s finds %d records by an indexed field, want 357", name, len(got))
		}
	}
	for _, name := range []string{"peer's", "ours again"} {
		if contents(t, file(name)) != contents(t, file("ours")) {
			t.Errorf("the export %q differs from the first", name)
		}
	}
}
