//! A cluster is founded once, whatever comes between.
//!
//! Not here: peers that belong to another cluster (`strangers`).

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_broke_off_is_completed_by_the_same_command() {
    let mut cluster = Cluster::of_none();
    let node = cluster.start("a", COMMAND_VERSION).await.unwrap();
    // The process ends between the two entries.
    node.found(node.shared.member.clone(), Founding::random()).await.unwrap();
    let founded = node.status().cluster_id.unwrap();
    assert_eq!(node.cluster_status().shape_generation, 0);
    drop(node);
    cluster.stop("a").await;
    let node = cluster.start("a", COMMAND_VERSION).await.unwrap();
    node.fence().await.unwrap();
    let other = node.init(Some("another".into())).await;
    assert!(matches!(&other, Err(AdminError::Founded { cluster_id }) if *cluster_id == founded), "{other:?}");
    assert_eq!(node.init(None).await.unwrap(), founded);
    let status = node.cluster_status();
    assert_eq!((status.shape_generation, status.shape.len()), (1, 3));
    // Now it is founded.
    assert!(matches!(node.init(None).await, Err(AdminError::Founded { .. })));
    assert_eq!(node.init(Some(founded.clone())).await.unwrap(), founded);
    drop(node);
    cluster.end().await;
}
