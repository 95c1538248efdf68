//! What members of a cluster say to each other, and operators to them: mutual TLS, both ends of the Raft and Admin
//! services.
//!
//! ```text
//!   raft ─▶ Client (Transport) ─ control, bulk ─▶ TLS ─▶ Server ─▶ Peers, Admin (what the node implements)
//!   databroker cluster ─ TLS, or the socket in the data folder ─▶ Server, Socket ──────────┘
//! ```
//!
//! Not here: what a message means (`raft`, `node`), the port of clients (`server`).

pub mod authority;
pub mod identity;
pub mod material;
pub mod tls;
