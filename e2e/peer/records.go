package main

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/storage"
)

// records answers databroker.DataBrokerService from a store.
type records struct {
	databrokerpb.UnimplementedDataBrokerServiceServer
	backend storage.Backend
}

func (s *records) AcquireLease(ctx context.Context, req *databrokerpb.AcquireLeaseRequest) (*databrokerpb.AcquireLeaseResponse, error) {
	id := rand.Text()
	acquired, err := s.backend.Lease(ctx, req.GetName(), id, req.GetDuration().AsDuration())
	if err == nil && !acquired {
		err = status.Error(codes.AlreadyExists, "lease is already taken")
	}
	return &databrokerpb.AcquireLeaseResponse{Id: id}, err
}

func (s *records) RenewLease(ctx context.Context, req *databrokerpb.RenewLeaseRequest) (*emptypb.Empty, error) {
	acquired, err := s.backend.Lease(ctx, req.GetName(), req.GetId(), req.GetDuration().AsDuration())
	if err == nil && !acquired {
		err = status.Error(codes.AlreadyExists, "lease no longer held")
	}
	return new(emptypb.Empty), err
}

func (s *records) ReleaseLease(ctx context.Context, req *databrokerpb.ReleaseLeaseRequest) (*emptypb.Empty, error) {
	_, err := s.backend.Lease(ctx, req.GetName(), req.GetId(), -1)
	return new(emptypb.Empty), err
}

func (s *records) Clear(ctx context.Context, _ *emptypb.Empty) (*databrokerpb.ClearResponse, error) {
	before, _, _, err := s.backend.Versions(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.backend.Clear(ctx); err != nil {
		return nil, err
	}
	after, _, _, err := s.backend.Versions(ctx)
	return &databrokerpb.ClearResponse{OldServerVersion: before, NewServerVersion: after}, err
}

func (s *records) Get(ctx context.Context, req *databrokerpb.GetRequest) (*databrokerpb.GetResponse, error) {
	record, err := s.backend.Get(ctx, req.GetType(), req.GetId())
	return &databrokerpb.GetResponse{Record: record}, err
}

func (s *records) GetOptions(ctx context.Context, req *databrokerpb.GetOptionsRequest) (*databrokerpb.GetOptionsResponse, error) {
	if req.GetType() == "" {
		return nil, status.Error(codes.InvalidArgument, "options req type is empty")
	}
	options, err := s.backend.GetOptions(ctx, req.GetType())
	return &databrokerpb.GetOptionsResponse{Options: options}, err
}

func (s *records) SetOptions(ctx context.Context, req *databrokerpb.SetOptionsRequest) (*databrokerpb.SetOptionsResponse, error) {
	if err := s.backend.SetOptions(ctx, req.GetType(), req.GetOptions()); err != nil {
		return nil, err
	}
	options, err := s.backend.GetOptions(ctx, req.GetType())
	return &databrokerpb.SetOptionsResponse{Options: options}, err
}

func (s *records) ListTypes(ctx context.Context, _ *emptypb.Empty) (*databrokerpb.ListTypesResponse, error) {
	types, err := s.backend.ListTypes(ctx)
	return &databrokerpb.ListTypesResponse{Types: types}, err
}

func (s *records) Put(ctx context.Context, req *databrokerpb.PutRequest) (*databrokerpb.PutResponse, error) {
	stored := make([]*databrokerpb.Record, 0, len(req.GetRecords()))
	for _, record := range req.GetRecords() {
		stored = append(stored, proto.CloneOf(record))
	}
	version, err := s.backend.Put(ctx, stored)
	return &databrokerpb.PutResponse{ServerVersion: version, Records: stored}, err
}

func (s *records) Patch(ctx context.Context, req *databrokerpb.PatchRequest) (*databrokerpb.PatchResponse, error) {
	version, patched, err := s.backend.Patch(ctx, req.GetRecords(), req.GetFieldMask())
	return &databrokerpb.PatchResponse{ServerVersion: version, Records: patched}, err
}

func (s *records) Query(ctx context.Context, req *databrokerpb.QueryRequest) (*databrokerpb.QueryResponse, error) {
	filter, err := storage.FilterExpressionFromStruct(req.GetFilter())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "invalid query filter: %v", err)
	}
	serverVersion, recordVersion, found, err := s.backend.SyncLatest(ctx, req.GetType(), filter)
	if err != nil {
		return nil, err
	}
	text := strings.ToLower(req.GetQuery())
	var all []*databrokerpb.Record
	for record, err := range found {
		if err != nil {
			return nil, err
		}
		if text == "" || storage.MatchAny(record.GetData(), text) {
			all = append(all, record)
		}
	}
	page, total := databrokerpb.ApplyOffsetAndLimit(all, int(req.GetOffset()), int(req.GetLimit()))
	return &databrokerpb.QueryResponse{
		Records:       page,
		TotalCount:    int64(total),
		ServerVersion: serverVersion,
		RecordVersion: recordVersion,
	}, nil
}

func (s *records) ServerInfo(ctx context.Context, _ *emptypb.Empty) (*databrokerpb.ServerInfoResponse, error) {
	server, earliest, latest, err := s.backend.Versions(ctx)
	return &databrokerpb.ServerInfoResponse{
		ServerVersion:         server,
		EarliestRecordVersion: earliest,
		LatestRecordVersion:   latest,
	}, err
}

func (s *records) Sync(req *databrokerpb.SyncRequest, stream databrokerpb.DataBrokerService_SyncServer) error {
	ctx := stream.Context()
	wait := req.Wait == nil || req.GetWait()
	changes := s.backend.Sync(ctx, req.GetType(), req.GetServerVersion(), req.GetRecordVersion(), wait)
	connected := false
	for record, err := range changes {
		if errors.Is(err, storage.ErrStreamDone) {
			return nil
		}
		if err != nil {
			return err
		}
		if !connected {
			// The first is not a record: it says that the versions are in order.
			connected = true
			if err := s.eachOptions(ctx, req.GetType(), func(options *databrokerpb.TypedOptions) error {
				return stream.Send(&databrokerpb.SyncResponse{Response: &databrokerpb.SyncResponse_Options{Options: options}})
			}); err != nil {
				return err
			}
			continue
		}
		if err := stream.Send(&databrokerpb.SyncResponse{Response: &databrokerpb.SyncResponse_Record{Record: record}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *records) SyncLatest(req *databrokerpb.SyncLatestRequest, stream databrokerpb.DataBrokerService_SyncLatestServer) error {
	ctx := stream.Context()
	serverVersion, recordVersion, all, err := s.backend.SyncLatest(ctx, req.GetType(), nil)
	if err != nil {
		return err
	}
	for record, err := range all {
		if err != nil {
			return err
		}
		if err := stream.Send(&databrokerpb.SyncLatestResponse{Response: &databrokerpb.SyncLatestResponse_Record{Record: record}}); err != nil {
			return err
		}
	}
	if err := s.eachOptions(ctx, req.GetType(), func(options *databrokerpb.TypedOptions) error {
		return stream.Send(&databrokerpb.SyncLatestResponse{Response: &databrokerpb.SyncLatestResponse_Options{Options: options}})
	}); err != nil {
		return err
	}
	return stream.Send(&databrokerpb.SyncLatestResponse{Response: &databrokerpb.SyncLatestResponse_Versions{
		Versions: &databrokerpb.Versions{ServerVersion: serverVersion, LatestRecordVersion: recordVersion},
	}})
}

func (s *records) eachOptions(ctx context.Context, recordType string, send func(*databrokerpb.TypedOptions) error) error {
	types := []string{recordType}
	if recordType == "" {
		var err error
		if types, err = s.backend.ListTypes(ctx); err != nil {
			return err
		}
	}
	for _, recordType := range types {
		options, err := s.backend.GetOptions(ctx, recordType)
		if storage.IsNotFound(err) {
			continue
		} else if err != nil {
			return err
		}
		if err := send(&databrokerpb.TypedOptions{TypeURL: recordType, Options: options}); err != nil {
			return err
		}
	}
	return nil
}

// checkpoints answers databroker.CheckpointService from a store.
type checkpoints struct {
	databrokerpb.UnimplementedCheckpointServiceServer
	backend storage.Backend
}

func (s *checkpoints) GetCheckpoint(ctx context.Context, _ *databrokerpb.GetCheckpointRequest) (*databrokerpb.GetCheckpointResponse, error) {
	server, record, err := s.backend.GetCheckpoint(ctx)
	return &databrokerpb.GetCheckpointResponse{
		Checkpoint: &databrokerpb.Checkpoint{ServerVersion: server, RecordVersion: record},
	}, err
}

func (s *checkpoints) SetCheckpoint(ctx context.Context, req *databrokerpb.SetCheckpointRequest) (*databrokerpb.SetCheckpointResponse, error) {
	err := s.backend.SetCheckpoint(ctx, req.GetCheckpoint().GetServerVersion(), req.GetCheckpoint().GetRecordVersion())
	return new(databrokerpb.SetCheckpointResponse), err
}

// installDefaults sets what a databroker sets when it starts.
func installDefaults(ctx context.Context, backend storage.Backend) error {
	const prefix = "type.googleapis.com/"
	quarterHour := durationpb.New(15 * time.Minute)
	defaults := map[string]*databrokerpb.Options{
		"session.SessionBindingRequest": {Capacity: proto.Uint64(50_000), IndexableFields: []string{"key"}, Ttl: quarterHour},
		"session.SessionBinding":        {IndexableFields: []string{"session_id", "user_id"}},
		"session.IdentityBinding":       {IndexableFields: []string{"user_id"}},
		"oauth21.UpstreamMCPToken":      {IndexableFields: []string{"user_id", "route_id"}},
		"oauth21.PendingUpstreamAuth":   {IndexableFields: []string{"state_id"}, Ttl: quarterHour},
	}
	for name, options := range defaults {
		if err := backend.SetOptions(ctx, prefix+name, options); err != nil {
			return err
		}
	}
	return nil
}
