module github.com/pomerium/pomerium/pkg/grpc/config

go 1.26
