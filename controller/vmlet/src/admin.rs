//! /metrics, /livez and /readyz of an agent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::RawQuery;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use vmlet_node::metrics::Metrics;

/// What an agent tells of itself over HTTP. Cheap to clone.
#[derive(Clone, Default)]
pub struct Admin {
    /// For /metrics.
    pub metrics: Metrics,
    done: Arc<Mutex<Vec<Step>>>,
}

/// What an agent does before it is ready, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The data directory is locked.
    DataDirectory,
    /// Machines that run are adopted.
    Machines,
    /// Images and kernels are open.
    Artifacts,
    /// The API answers, and is the one that the data directory belongs to.
    Api,
}

/// The steps, their names, and what is the matter while they are not done.
const STEPS: [(Step, &str, &str); 4] = [
    (Step::DataDirectory, "data-directory", "it is not locked yet"),
    (Step::Machines, "machines", "those that run are not adopted yet"),
    (Step::Artifacts, "artifacts", "images and kernels are not open yet"),
    (
        Step::Api,
        "api",
        "it has not answered yet, or not yet as the API that the data directory belongs to",
    ),
];

impl Admin {
    /// Serves on `listen`, if there is one, until `shutdown`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: Option<SocketAddr>, shutdown: &CancellationToken) -> Result<Admin> {
        let admin = Admin::default();
        if let Some(listen) = listen {
            let listener = tokio::net::TcpListener::bind(listen)
                .await
                .with_context(|| format!("--admin-listen {listen}"))?;
            tracing::info!(admin = %listener.local_addr()?, "/metrics, /livez and /readyz are served");
            let served =
                axum::serve(listener, admin.router()).with_graceful_shutdown(shutdown.clone().cancelled_owned());
            tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::warn!(%error, "the admin server ended");
                }
            });
        }
        Ok(admin)
    }

    /// A step is done.
    pub fn done(&self, step: Step) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    /// Each check, and why it fails.
    fn checks(&self) -> Vec<(&'static str, Option<String>)> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = STEPS.map(|(step, name, missing)| (name, (!done.contains(&step)).then(|| missing.to_owned())));
        let heartbeat = ("heartbeat", self.metrics.heartbeat_problem());
        steps.into_iter().chain([heartbeat]).collect()
    }

    fn router(&self) -> Router {
        let (ready, metrics) = (self.clone(), self.metrics.clone());
        let readyz = move |RawQuery(query): RawQuery| async move {
            let verbose = query.is_some_and(|query| query.split(['&', '=']).any(|word| word == "verbose"));
            report(&ready.checks(), verbose)
        };
        let metrics = move || async move {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], metrics.encode())
        };
        Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
    }
}

/// In the words of kube-apiserver: `ok`, or each check in a line.
fn report(checks: &[(&str, Option<String>)], verbose: bool) -> impl IntoResponse + use<> {
    let ready = checks.iter().all(|(_, problem)| problem.is_none());
    if ready && !verbose {
        return (StatusCode::OK, "ok".to_owned());
    }
    let mut text = String::new();
    for (name, problem) in checks {
        text += &match problem {
            None => format!("[+]{name} ok\n"),
            Some(problem) => format!("[-]{name} failed: {problem}\n"),
        };
    }
    text += if ready {
        "readyz check passed\n"
    } else {
        "readyz check failed\n"
    };
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ready_is_named_with_its_reason() {
        let admin = Admin::default();
        let failing = |admin: &Admin| -> Vec<&str> {
            let checks = admin.checks();
            checks.into_iter().filter_map(|(name, why)| why.map(|_| name)).collect()
        };
        assert_eq!(
            failing(&admin),
            ["data-directory", "machines", "artifacts", "api", "heartbeat"]
        );
        for (step, ..) in STEPS {
            admin.done(step);
        }
        assert_eq!(failing(&admin), ["heartbeat"]);
        let status = |checks: &[(&str, Option<String>)], verbose| report(checks, verbose).into_response().status();
        assert_eq!(status(&admin.checks(), false), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status(&[("api", None)], true), StatusCode::OK);
    }
}
