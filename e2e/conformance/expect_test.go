package conformance

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// rawConn connects without tokens.
func rawConn(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(shared.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// eventually polls a condition until it holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	err := within(func() error {
		if !holds() {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("does not come true in %v: %s", patience, what)
	}
}

// within tries until it succeeds, or patience is at its end.
func within(try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// wantStatus checks code and, unless it is empty, the message. A stream without an answer may end with EOF: that is OK.
func wantStatus(t *testing.T, err error, code codes.Code, message string) {
	t.Helper()
	if code == codes.OK && (err == nil || isEOF(err)) {
		return
	}
	got := status.Convert(err)
	if got.Code() != code || (message != "" && !strings.Contains(got.Message(), message)) {
		t.Errorf("got %v %q, want %v %q", got.Code(), got.Message(), code, message)
	}
}

func isEOF(err error) bool { return err != nil && err.Error() == "EOF" }

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func pack(t *testing.T, message proto.Message) *anypb.Any {
	t.Helper()
	return must[*anypb.Any](t)(anypb.New(message))
}

// record has a string as data.
func record(recordType, id, data string) *databrokerpb.Record {
	packed, err := anypb.New(wrapperspb.String(data))
	if err != nil {
		panic(err)
	}
	return &databrokerpb.Record{Type: recordType, Id: id, Data: packed}
}

// fields has an object as data.
func fields(t *testing.T, recordType, id string, object map[string]any) *databrokerpb.Record {
	t.Helper()
	data := must[*structpb.Struct](t)(structpb.NewStruct(object))
	return &databrokerpb.Record{Type: recordType, Id: id, Data: pack(t, data)}
}

// deleted asks for a deletion, with other data than what is stored.
func deleted(recordType, id string) *databrokerpb.Record {
	record := record(recordType, id, "the request's data")
	record.DeletedAt = timestamppb.New(time.Unix(1, 0))
	return record
}

func put(t *testing.T, c client, records ...*databrokerpb.Record) *databrokerpb.PutResponse {
	t.Helper()
	return must[*databrokerpb.PutResponse](t)(c.Put(testContext(t), &databrokerpb.PutRequest{Records: records}))
}

func get(t *testing.T, c client, recordType, id string) *databrokerpb.Record {
	t.Helper()
	answer := must[*databrokerpb.GetResponse](t)(c.Get(testContext(t), &databrokerpb.GetRequest{Type: recordType, Id: id}))
	return answer.GetRecord()
}

func exists(t *testing.T, c client, recordType, id string) bool {
	t.Helper()
	_, err := c.Get(testContext(t), &databrokerpb.GetRequest{Type: recordType, Id: id})
	if err != nil && status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	return err == nil
}

func setOptions(t *testing.T, c client, recordType string, options *databrokerpb.Options) {
	t.Helper()
	must[*databrokerpb.SetOptionsResponse](t)(c.SetOptions(testContext(t), &databrokerpb.SetOptionsRequest{Type: recordType, Options: options}))
}

func serverInfo(t *testing.T, c client) *databrokerpb.ServerInfoResponse {
	t.Helper()
	return must[*databrokerpb.ServerInfoResponse](t)(c.ServerInfo(testContext(t), new(emptypb.Empty)))
}

// query finds ids; filter is a JSON object as a Go map.
func query(t *testing.T, c client, recordType string, filter map[string]any) []string {
	t.Helper()
	answer, err := c.Query(testContext(t), queryRequest(t, recordType, filter))
	if err != nil {
		t.Fatalf("%v: %v", filter, err)
	}
	return ids(answer.GetRecords())
}

func queryRequest(t *testing.T, recordType string, filter map[string]any) *databrokerpb.QueryRequest {
	t.Helper()
	request := &databrokerpb.QueryRequest{Type: recordType, Limit: 100_000}
	if filter != nil {
		request.Filter = must[*structpb.Struct](t)(structpb.NewStruct(filter))
	}
	return request
}

func ids(records []*databrokerpb.Record) []string {
	ids := []string{}
	for _, record := range records {
		ids = append(ids, record.GetId())
	}
	return ids
}

// list is a JSON array.
func list(items ...any) []any { return items }

// object is a JSON object.
type object = map[string]any

type syncStream interface {
	Recv() (*databrokerpb.SyncResponse, error)
}

// recvRecord receives the next record, passing over options.
func recvRecord(t *testing.T, stream syncStream) *databrokerpb.Record {
	t.Helper()
	for {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if record := answer.GetRecord(); record != nil {
			return record
		}
	}
}

// follow opens a waiting stream from where the server is now.
func follow(t *testing.T, c client, recordType string) databrokerpb.DataBrokerService_SyncClient {
	t.Helper()
	info := serverInfo(t, c)
	return must[databrokerpb.DataBrokerService_SyncClient](t)(c.Sync(testContext(t), &databrokerpb.SyncRequest{
		ServerVersion: info.GetServerVersion(),
		RecordVersion: info.GetLatestRecordVersion(),
		Type:          recordType,
	}))
}

// changes collects what a stream that does not wait has.
func changes(t *testing.T, c client, recordType string, after uint64) (records []*databrokerpb.Record, options []*databrokerpb.TypedOptions) {
	t.Helper()
	stream := must[databrokerpb.DataBrokerService_SyncClient](t)(c.Sync(testContext(t), &databrokerpb.SyncRequest{
		ServerVersion: serverInfo(t, c).GetServerVersion(),
		RecordVersion: after,
		Type:          recordType,
		Wait:          proto.Bool(false),
	}))
	for {
		answer, err := stream.Recv()
		if isEOF(err) {
			return records, options
		} else if err != nil {
			t.Fatal(err)
		}
		if answer.GetRecord() != nil {
			records = append(records, answer.GetRecord())
		} else {
			options = append(options, answer.GetOptions())
		}
	}
}

// latest is everything that SyncLatest sends, frame by frame.
func latest(t *testing.T, c client, recordType string) []*databrokerpb.SyncLatestResponse {
	t.Helper()
	stream := must[databrokerpb.DataBrokerService_SyncLatestClient](t)(c.SyncLatest(testContext(t), &databrokerpb.SyncLatestRequest{Type: recordType}))
	var frames []*databrokerpb.SyncLatestResponse
	for {
		frame, err := stream.Recv()
		if isEOF(err) {
			return frames
		} else if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, frame)
	}
}
