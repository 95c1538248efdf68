// Load writes to a databroker from inside a cluster and watches what it gets back, with the Go client that Pomerium's
// services use: writers that put one record after the other, and copies that Pomerium's own Syncer keeps. A test asks it
// over HTTP:
//
//	/progress   what happened since the last /begin, as JSON
//	/begin      counts anew from here
//	/finish     ends the writers, waits for the copies, reads everything back, and says what is missing
//	/greet      says whether a server answers on HTTP/2 to whoever comes with a given certificate, or with none
//
// What was acknowledged is counted for the whole run, however often it is begun anew.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver/dns"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"databroker.dev/e2e/conformance/token"
	"github.com/pomerium/pomerium/pkg/databrokerutil"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

const recordType = "databroker.dev/e2e"

var (
	address  = flag.String("address", "", "target as grpc-go takes it: host:port, or dns:///host:port for all of its addresses")
	caFile   = flag.String("ca-file", "", "authority of the server's certificate; without it plaintext")
	secret   = flag.String("secret-file", "/secret/shared_secret", "the shared secret, base64 or raw")
	listen   = flag.String("listen", ":8080", "where it is asked")
	writers  = flag.Int("writers", 8, "how many write at a time")
	syncers  = flag.Int("syncers", 3, "how many keep a copy")
	deadline = flag.Duration("deadline", 10*time.Second, "of each call")
	pause    = flag.Duration("pause", 5*time.Millisecond, "between two calls of a writer")
	run      = flag.String("run", "run", "part of the records' ids")
)

// window is what is counted between two questions.
type window struct {
	Acknowledged int            `json:"acknowledged"`
	Failed       int            `json:"failed"`
	Errors       map[string]int `json:"errors"`
	// The longest time without an acknowledgement of any writer, and of one writer between two of its own.
	GapMillis       int64     `json:"gapMillis"`
	GapAt           time.Time `json:"gapAt"`
	SlowestMillis   int64     `json:"slowestMillis"`
	Resyncs         int       `json:"resyncs"`
	SecondsObserved float64   `json:"secondsObserved"`
}

// report is what /finish says.
type report struct {
	window
	AcknowledgedInAll int      `json:"acknowledgedInAll"`
	Lost              int      `json:"lost"`
	LostIDs           []string `json:"lostIds"`
	// Acknowledged records that a copy never got to see.
	MissedByCopies int `json:"missedByCopies"`
}

type load struct {
	client databrokerpb.DataBrokerServiceClient
	copies []*mirror

	mu           sync.Mutex
	now          window
	began        time.Time
	lastAck      time.Time
	acknowledged []string
}

func (l *load) acknowledge(id string, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.note(now)
	l.lastAck = now
	l.now.Acknowledged++
	l.now.SlowestMillis = max(l.now.SlowestMillis, took.Milliseconds())
	l.acknowledged = append(l.acknowledged, id)
}

// note measures the gap that lasts at the moment.
func (l *load) note(now time.Time) {
	if gap := now.Sub(l.lastAck).Milliseconds(); gap > l.now.GapMillis {
		l.now.GapMillis, l.now.GapAt = gap, l.lastAck
	}
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.Failed++
	said := status.Convert(err)
	l.now.Errors[said.Code().String()+": "+said.Message()]++
}

func (l *load) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.now = window{Errors: map[string]int{}}
	l.began, l.lastAck = now, now
	for _, c := range l.copies {
		c.begin()
	}
}

func (l *load) progress() window {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.note(now)
	seen := l.now
	seen.SecondsObserved = now.Sub(l.began).Seconds()
	for _, c := range l.copies {
		seen.Resyncs += c.resyncs()
	}
	return seen
}

// write puts records until the context ends. What failed is not tried again: its fate is unknown, and the next has
// another id.
func (l *load) write(ctx context.Context, writer int) {
	for number := 0; ctx.Err() == nil; number++ {
		id := fmt.Sprintf("%s-%d-%d", *run, writer, number)
		data, err := anypb.New(wrapperspb.String(id))
		if err != nil {
			log.Fatal(err)
		}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), *deadline)
		began := time.Now()
		_, err = l.client.Put(call, &databrokerpb.PutRequest{Records: []*databrokerpb.Record{{Type: recordType, Id: id, Data: data}}})
		cancel()
		if err != nil {
			l.fail(err)
		} else {
			l.acknowledge(id, time.Since(began))
		}
		time.Sleep(*pause)
	}
}

func (l *load) finish(ctx context.Context) (*report, error) {
	l.mu.Lock()
	acknowledged := l.acknowledged
	l.mu.Unlock()
	there, err := readAll(ctx, l.client)
	if err != nil {
		return nil, err
	}
	out := &report{window: l.progress(), AcknowledgedInAll: len(acknowledged)}
	for _, id := range acknowledged {
		if there[id] != id {
			out.Lost++
			if len(out.LostIDs) < 20 {
				out.LostIDs = append(out.LostIDs, id)
			}
		}
	}
	for _, c := range l.copies {
		out.MissedByCopies += c.missing(ctx, acknowledged)
	}
	return out, nil
}

// readAll gives what each record of this run says, by its id.
func readAll(ctx context.Context, client databrokerpb.DataBrokerServiceClient) (map[string]string, error) {
	stream, err := client.SyncLatest(ctx, &databrokerpb.SyncLatestRequest{Type: recordType})
	if err != nil {
		return nil, err
	}
	there := map[string]string{}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return there, nil
		} else if err != nil {
			return nil, err
		}
		if record := answer.GetRecord(); record != nil {
			var said wrapperspb.StringValue
			if err := record.GetData().UnmarshalTo(&said); err != nil {
				return nil, err
			}
			there[record.GetId()] = said.GetValue()
		}
	}
}

// mirror is the copy that a Syncer keeps.
type mirror struct {
	client databrokerpb.DataBrokerServiceClient

	mu      sync.Mutex
	cleared int
	ids     map[string]struct{}
}

func (m *mirror) GetDataBrokerServiceClient() databrokerpb.DataBrokerServiceClient { return m.client }

// ClearRecords is called once at the beginning, and again at every resync.
func (m *mirror) ClearRecords(context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cleared++
	m.ids = map[string]struct{}{}
}

func (m *mirror) UpdateRecords(_ context.Context, _ uint64, records []*databrokerpb.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, record := range records {
		m.ids[record.GetId()] = struct{}{}
	}
}

func (m *mirror) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cleared = min(m.cleared, 1)
}

func (m *mirror) resyncs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(m.cleared-1, 0)
}

// missing waits until the copy has all of them, or the context ends, and counts those that it has not.
func (m *mirror) missing(ctx context.Context, ids []string) int {
	for {
		m.mu.Lock()
		missing := 0
		for _, id := range ids {
			if _, there := m.ids[id]; !there {
				missing++
			}
		}
		m.mu.Unlock()
		if missing == 0 {
			return 0
		}
		select {
		case <-ctx.Done():
			return missing
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func dial() (*grpc.ClientConn, error) {
	key, err := os.ReadFile(*secret)
	if err != nil {
		return nil, err
	}
	if len(key) != 32 {
		if key, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(key))); err != nil {
			return nil, fmt.Errorf("%s: %w", *secret, err)
		}
	}
	transport := insecure.NewCredentials()
	if *caFile != "" {
		pem, err := os.ReadFile(*caFile)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", *caFile)
		}
		transport = credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
	}
	return grpc.NewClient(*address, append(token.WithEachCall(key),
		grpc.WithTransportCredentials(transport),
		// A dead node is noticed by silence alone.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))...)
}

// stranger is who greets a server, and which.
type stranger struct {
	Address     string `json:"address"`
	ServerName  string `json:"serverName"`
	Authority   string `json:"authority"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

// greet returns why the server does not answer. That a certificate is refused is told after the handshake in TLS 1.3: so
// the answer to the first frame is waited for.
func (s *stranger) greet(ctx context.Context) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(s.Authority)) {
		return errors.New("the authority has no certificate")
	}
	config := &tls.Config{RootCAs: roots, ServerName: s.ServerName, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}
	if s.Certificate != "" {
		own, err := tls.X509KeyPair([]byte(s.Certificate), []byte(s.Key))
		if err != nil {
			return err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	// The preface, and settings that say nothing.
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 9))
	return err
}

func answer(w http.ResponseWriter, said any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(said); err != nil {
		log.Print(err)
	}
}

func main() {
	flag.Parse()
	// A pod that is made anew has another address, and grpc-go asks for them every half minute at most: three pods in that
	// time, and it would know none. Envoy, which Pomerium's services dial through, asks every five seconds.
	dns.SetMinResolutionInterval(time.Second)
	conn, err := dial()
	if err != nil {
		log.Fatal(err)
	}
	l := &load{client: databrokerpb.NewDataBrokerServiceClient(conn)}
	for range *syncers {
		l.copies = append(l.copies, &mirror{client: l.client, ids: map[string]struct{}{}})
	}
	l.begin()
	for number, c := range l.copies {
		syncer := databrokerutil.NewSyncer(context.Background(), fmt.Sprint("copy ", number), c, databrokerutil.WithTypeURL(recordType))
		go func() { log.Fatal(syncer.Run(context.Background())) }()
	}
	writing, stop := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	for writer := range *writers {
		ended.Go(func() { l.write(writing, writer) })
	}

	http.HandleFunc("/progress", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.progress(), nil) })
	http.HandleFunc("/begin", func(w http.ResponseWriter, _ *http.Request) {
		seen := l.progress()
		l.begin()
		answer(w, seen, nil)
	})
	http.HandleFunc("/finish", func(w http.ResponseWriter, r *http.Request) {
		stop()
		ended.Wait()
		ctx, cancel := context.WithTimeout(r.Context(), 50*time.Second)
		defer cancel()
		said, err := l.finish(ctx)
		if code := status.Code(err); code == codes.Unavailable {
			err = fmt.Errorf("ask again: %w", err)
		}
		answer(w, said, err)
	})
	http.HandleFunc("/greet", func(w http.ResponseWriter, r *http.Request) {
		var s stranger
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&s); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		said := map[string]string{}
		if err := s.greet(r.Context()); err != nil {
			said["refused"] = err.Error()
		}
		answer(w, said, nil)
	})
	server := &http.Server{Addr: *listen, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServe())
}
