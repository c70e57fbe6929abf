//! A further task of the leader in one file. It joins the list that [`run_all`] runs, next to
//! another task, and runs while its replica leads.

use futures::future::BoxFuture;

use super::*;
use crate::leader_task::{LeaderTask, run_all};

/// Marks its replica as a leader while it runs.
struct Mark {
    replica: &'static str,
    leaders: Leaders,
}

impl LeaderTask for Mark {
    fn name(&self) -> &'static str {
        "mark"
    }

    fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let _leader = Leader::take(self.replica, &self.leaders);
            leading.cancelled().await;
        })
    }
}

/// Stands for the tasks that exist already.
struct Idle;

impl LeaderTask for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn run(&self, leading: CancellationToken) -> BoxFuture<'_, ()> {
        Box::pin(async move { leading.cancelled().await })
    }
}

fn replica(server: &Server, leaders: &Leaders, replica: &'static str) -> Candidate {
    let mark = Mark {
        replica,
        leaders: leaders.clone(),
    };
    let leader_tasks: Vec<Arc<dyn LeaderTask>> = vec![Arc::new(Idle), Arc::new(mark)];
    working(server, replica, move |leading| {
        run_all(leader_tasks.clone(), leading)
    })
}

#[tokio::test(start_paused = true)]
async fn a_further_task_runs_while_its_replica_leads() {
    let (server, leaders) = (Server::default(), Leaders::new());
    let a = replica(&server, &leaders, "a");
    leaders.until(&["a"]).await;
    let b = replica(&server, &leaders, "b");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*leaders.0.borrow(), ["a"]);
    // A task that ends with the leadership starts again with the next.
    for (last, next) in [("a", "b"), ("b", "a")] {
        server.cut(last);
        leaders.until(&[next]).await;
        server.0.lock().cut.clear();
    }
    b.stop.cancel();
    b.task.await.unwrap();
    assert_eq!(*leaders.0.borrow(), ["a"]);
    a.stop.cancel();
    a.task.await.unwrap();
    assert!(
        leaders.0.borrow().is_empty(),
        "the task outlives its replica"
    );
}
