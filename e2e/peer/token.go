package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func randomKey() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return key
}

// checkToken wants what every client sends: HS256 over exactly {"exp": …}.
func checkToken(ctx context.Context, key []byte) error {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("jwt")
	if len(values) == 0 {
		return status.Error(codes.Unauthenticated, "unauthenticated")
	}
	signed, signature, ok := cutLast(values[0], ".")
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	got, err := base64.RawURLEncoding.DecodeString(signature)
	if !ok || err != nil || !hmac.Equal(got, mac.Sum(nil)) || !current(signed) {
		return status.Error(codes.Unauthenticated, "invalid JWT")
	}
	return nil
}

func current(signed string) bool {
	_, payload, _ := cutLast(signed, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return false
	}
	var claims map[string]float64
	if json.Unmarshal(text, &claims) != nil || len(claims) != 1 {
		return false
	}
	return claims["exp"] >= float64(time.Now().Unix())
}

func cutLast(s, sep string) (before, after string, found bool) {
	at := strings.LastIndex(s, sep)
	if at < 0 {
		return s, "", false
	}
	return s[:at], s[at+len(sep):], true
}

func isOpen(method string) bool {
	return strings.HasPrefix(method, "/grpc.health.") || strings.HasPrefix(method, "/grpc.reflection.")
}

func requireTokenUnary(key []byte) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if !isOpen(info.FullMethod) {
			if err := checkToken(ctx, key); err != nil {
				return nil, err
			}
		}
		return handler(ctx, req)
	}
}

func requireTokenStream(key []byte) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if !isOpen(info.FullMethod) {
			if err := checkToken(stream.Context(), key); err != nil {
				return err
			}
		}
		return handler(srv, stream)
	}
}
