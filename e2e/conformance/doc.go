// Package conformance tests a databroker through the Go client that Pomerium's own services use.
//
// It knows the public interface and nothing else, but for the tool that founds a cluster. The server is the binary named
// by DATABROKER_BIN, started on loopback with a temporary data folder. With DATABROKER_FOLLOWER=1 every server is one node
// of a cluster of three, and another leads when the test begins. With DATABROKER_PEER=1 that binary is ../peer instead: then the tests named after the
// peer's own bugs, and those of deliberate differences, are skipped, and the rest shows that the tests are fair.
//
// Exports move between the server and ../peer, which the test that does so builds.
package conformance
