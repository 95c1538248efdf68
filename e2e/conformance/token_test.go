package conformance

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"databroker.dev/e2e/conformance/token"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	registrypb "github.com/pomerium/pomerium/pkg/grpc/registry"
)

func decodeKey(text []byte) ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
}

func TestTokens(t *testing.T) {
	t.Parallel()
	key := shared.key
	hs256 := func(claims string) string { return token.Sign(key, "HS256", sha256.New, claims) }
	hour := time.Now().Add(time.Hour).Unix()
	good := token.New(key)
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." +
		base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, hour)) + "."

	for _, test := range []struct {
		name    string
		tokens  []string
		code    codes.Code
		message string
	}{
		{name: "good", tokens: []string{good}},
		{name: "exp with a fraction", tokens: []string{hs256(fmt.Sprintf(`{"exp":%d.5}`, hour))}},
		{name: "none", tokens: []string{}, code: codes.Unauthenticated, message: "unauthenticated"},
		{name: "empty", tokens: []string{""}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "not a token", tokens: []string{"a.b.c"}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "another key", tokens: []string{token.New(make([]byte, 32))}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "expired", tokens: []string{hs256(`{"exp":1000000000}`)}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "expired a moment ago", tokens: []string{hs256(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(-2*time.Second).Unix()))}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "extra claim", tokens: []string{hs256(fmt.Sprintf(`{"exp":%d,"iat":1}`, hour))}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "exp missing", tokens: []string{hs256(`{"iat":1}`)}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "no claims", tokens: []string{hs256(`{}`)}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "exp not a number", tokens: []string{hs256(`{"exp":"tomorrow"}`)}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "unsigned", tokens: []string{unsigned}, code: codes.Unauthenticated, message: "invalid JWT"},
		{name: "first of two counts: good", tokens: []string{good, "bad"}},
		{name: "BUG HS512 accepted", tokens: []string{token.Sign(key, "HS512", sha512.New, fmt.Sprintf(`{"exp":%d}`, hour))}, code: codes.Unauthenticated, message: "invalid JWT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			md := metadata.MD{"jwt": test.tokens}
			conn := rawConn(t)
			ctx := metadata.NewOutgoingContext(testContext(t), md)
			_, unary := databrokerpb.NewDataBrokerServiceClient(conn).ServerInfo(ctx, new(emptypb.Empty))
			wantStatus(t, unary, test.code, test.message)
			stream, err := databrokerpb.NewDataBrokerServiceClient(conn).SyncLatest(ctx, &databrokerpb.SyncLatestRequest{Type: t.Name()})
			if err == nil {
				_, err = stream.Recv()
			}
			wantStatus(t, err, test.code, test.message)
		})
	}
}

func TestEveryMethodNeedsAToken(t *testing.T) {
	t.Parallel()
	conn := rawConn(t)
	for _, method := range []string{
		"AcquireLease", "Clear", "Get", "GetOptions", "ListTypes", "Put", "Patch", "Query", "ReleaseLease", "RenewLease",
		"ServerInfo", "SetOptions",
	} {
		err := conn.Invoke(testContext(t), "/databroker.DataBrokerService/"+method, new(emptypb.Empty), new(emptypb.Empty))
		wantStatus(t, err, codes.Unauthenticated, "unauthenticated")
	}
	_, err := databrokerpb.NewCheckpointServiceClient(conn).GetCheckpoint(testContext(t), new(databrokerpb.GetCheckpointRequest))
	wantStatus(t, err, codes.Unauthenticated, "unauthenticated")
	_, err = databrokerpb.NewCheckpointServiceClient(conn).SetCheckpoint(testContext(t), new(databrokerpb.SetCheckpointRequest))
	wantStatus(t, err, codes.Unauthenticated, "unauthenticated")
	_, err = registrypb.NewRegistryClient(conn).Report(testContext(t), new(registrypb.RegisterRequest))
	wantStatus(t, err, codes.Unauthenticated, "unauthenticated")
	_, err = registrypb.NewRegistryClient(conn).List(testContext(t), new(registrypb.ListRequest))
	wantStatus(t, err, codes.Unauthenticated, "unauthenticated")
	watch, err := registrypb.NewRegistryClient(conn).Watch(testContext(t), new(registrypb.ListRequest))
	if err == nil {
		_, err = watch.Recv()
	}
	wantStatus(t, err, codes.Unauthenticated, "unauthenticated")
}

// A token that runs out does not end a stream that it opened.
func TestAnExpiredTokenDoesNotEndAStream(t *testing.T) {
	t.Parallel()
	c := shared.client()
	info := serverInfo(t, c)
	soon := fmt.Sprintf(`{"exp":%d}`, time.Now().Add(2*time.Second).Unix())
	short := token.Sign(shared.key, "HS256", sha256.New, soon)
	ctx := metadata.AppendToOutgoingContext(testContext(t), "jwt", short)
	stream, err := c.Sync(ctx, &databrokerpb.SyncRequest{ServerVersion: info.GetServerVersion(), RecordVersion: info.GetLatestRecordVersion(), Type: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, record(t.Name(), "first", "x"))
	if got := recvRecord(t, stream); got.GetId() != "first" {
		t.Fatalf("got %v", got)
	}
	eventually(t, "the token has expired", func() bool {
		_, err := c.ServerInfo(metadata.AppendToOutgoingContext(context.Background(), "jwt", short), new(emptypb.Empty))
		return err != nil
	})
	put(t, c, record(t.Name(), "second", "x"))
	if got := recvRecord(t, stream); got.GetId() != "second" {
		t.Fatalf("got %v", got)
	}
}
