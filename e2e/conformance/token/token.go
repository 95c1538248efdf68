// Package token has what every client of Pomerium's sends with its calls: who knows the shared secret. For the tests and the
// load client; the broker has its own.
package token

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// New makes a token that is good for an hour.
func New(key []byte) string {
	return Sign(key, "HS256", sha256.New, fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix()))
}

// Sign makes a token that says what it is told to.
func Sign(key []byte, algorithm string, hash func() hash.Hash, claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"alg":"`+algorithm+`","typ":"JWT"}`)) + "." + encode([]byte(claims))
	mac := hmac.New(hash, key)
	mac.Write([]byte(signed))
	return signed + "." + encode(mac.Sum(nil))
}

// WithEachCall sends a new token with each call and stream that has none yet.
func WithEachCall(key []byte) []grpc.DialOption {
	signed := func(ctx context.Context) context.Context {
		if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md.Get("jwt")) > 0 {
			return ctx
		}
		return metadata.AppendToOutgoingContext(ctx, "jwt", New(key))
	}
	return []grpc.DialOption{
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(signed(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return streamer(signed(ctx), desc, cc, method, opts...)
		}),
	}
}
