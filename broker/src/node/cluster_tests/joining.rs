//! A node without data, as after its disk was lost, and a cluster that is about to take it in.
//!
//! Not here: how it is taken in (`node::shape`).

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_while_a_cluster_that_is_near_takes_the_node_in() {
    let mut cluster = Cluster::of_none();
    cluster.start("a", COMMAND_VERSION).await.unwrap().init(None).await.unwrap();
    // It answers, and does not say anything by itself: so it cannot take the other in yet.
    cluster.hub.silent.lock().insert("a:1".into());
    let options = Options { hold: PATIENCE, ..cluster.options("b", COMMAND_VERSION) };
    let node = Node::open(options).await.unwrap();
    cluster.hub.running.lock().insert("b:1".into(), node.clone());
    cluster.running.insert("b", node.clone());
    node.greet_all(&NoSeeds).await;
    assert!(!node.role().initialized);
    let speaks_again = async { assert!(cluster.hub.silent.lock().remove("a:1")) };
    let (write, read, ()) = tokio::join!(node.propose(put("x")), node.fence(), speaks_again);
    write.unwrap();
    read.unwrap();
    drop(node);
    cluster.end().await;
}
