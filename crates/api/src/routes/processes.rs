//! Background processes.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::Uri;
use sandpail_sandbox::{ProcessInfo, ProcessState, Sandbox, SandboxError};

use crate::error::{ApiError, Operation};
use crate::extract::{self, Id, Query};
use crate::sse;
use crate::state::Api;
use crate::wire::{
    self, ErrorBody, Process, ProcessKilled, ProcessList, ProcessLogText, ProcessRequest, ProcessesKilled,
};

/// The process of `…/processes/{pid}`, by its name or else its pid.
async fn find(sandbox: &Sandbox, uri: &Uri) -> Result<ProcessInfo, ApiError> {
    let wanted = extract::segment(uri, 5);
    let mut all = sandbox.list_processes().await;
    let by_name = all.iter().position(|process| process.id == wanted);
    // A pid can be used again: the newest is meant.
    let by_pid = || all.iter().rposition(|process| process.pid.to_string() == wanted);
    match by_name.or_else(by_pid) {
        Some(index) => Ok(all.swap_remove(index)),
        None => Err(Operation::Process("process").failed(SandboxError::NoProcess { id: wanted })),
    }
}

/// Starts a process in the background.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/processes", operation_id = "startProcess", tag = "processes",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = ProcessRequest,
    responses(
        (status = 200, description = "It runs", body = Process),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 403, description = "`cwd` is outside", body = ErrorBody),
        (status = 502, description = "It could not be started", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn start_process(State(api): State<Api>, Id(id): Id, body: Body) -> Result<Json<Process>, ApiError> {
    let members = wire::object(&extract::small_body(body).await?)?;
    let spec = ProcessRequest::parse(&members)?;
    let sandbox = api.sandbox(&id).await?;
    let info = sandbox.start_process(spec).await.map_err(|error| Operation::Process("start").failed(error))?;
    Ok(Json(Process::from(info)))
}

/// Lists the background processes, ended ones too.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/processes", operation_id = "listProcesses", tag = "processes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "All of them", body = ProcessList),
        (status = 400, description = "Not an id", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "The sandbox could not be started", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn list_processes(State(api): State<Api>, Id(id): Id) -> Result<Json<ProcessList>, ApiError> {
    let sandbox = api.sandbox(&id).await?;
    let processes = sandbox.list_processes().await.into_iter().map(Process::from).collect();
    Ok(Json(ProcessList { processes }))
}

/// Sends a signal to all background processes that run.
#[utoipa::path(
    delete, path = "/v1/sandbox/{id}/processes", operation_id = "killAllProcesses", tag = "processes",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("signal" = Option<String>, Query, description = "Its name or number; `SIGTERM` if it is missing"),
    ),
    responses(
        (status = 200, description = "It is sent", body = ProcessesKilled),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "It could not be sent", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn kill_all_processes(
    State(api): State<Api>,
    Id(id): Id,
    query: Query,
) -> Result<Json<ProcessesKilled>, ApiError> {
    let signal = wire::parse_signal(query.first("signal").as_deref())?;
    let sandbox = api.sandbox(&id).await?;
    let mut count = 0;
    for process in sandbox.list_processes().await {
        if process.state != ProcessState::Running {
            continue;
        }
        match sandbox.kill_process(&process.id, signal).await {
            Ok(()) => count += 1,
            // It ended since it was listed.
            Err(SandboxError::NoProcess { .. }) => {}
            Err(error) => return Err(Operation::Process("kill").failed(error)),
        }
    }
    Ok(Json(ProcessesKilled { success: true, count, timestamp: wire::now() }))
}

/// Describes a background process.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/processes/{process}", operation_id = "getProcess", tag = "processes",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("process" = String, Path, description = "Its name or pid"),
    ),
    responses(
        (status = 200, description = "What it does", body = Process),
        (status = 400, description = "Not an id", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such process", body = ErrorBody),
        (status = 502, description = "The sandbox could not be started", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn get_process(State(api): State<Api>, Id(id): Id, uri: Uri) -> Result<Json<Process>, ApiError> {
    let sandbox = api.sandbox(&id).await?;
    Ok(Json(Process::from(find(&sandbox, &uri).await?)))
}

/// Sends a signal to a background process and those that it started.
#[utoipa::path(
    delete, path = "/v1/sandbox/{id}/processes/{process}", operation_id = "killProcess", tag = "processes",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("process" = String, Path, description = "Its name or pid"),
        ("signal" = Option<String>, Query, description = "Its name or number; `SIGTERM` if it is missing"),
    ),
    responses(
        (status = 200, description = "It is sent", body = ProcessKilled),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such process", body = ErrorBody),
        (status = 502, description = "It could not be sent", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn kill_process(
    State(api): State<Api>,
    Id(id): Id,
    uri: Uri,
    query: Query,
) -> Result<Json<ProcessKilled>, ApiError> {
    let signal = wire::parse_signal(query.first("signal").as_deref())?;
    let sandbox = api.sandbox(&id).await?;
    let process = find(&sandbox, &uri).await?;
    let sent = sandbox.kill_process(&process.id, signal).await;
    sent.map_err(|error| Operation::Process("kill").failed(error))?;
    Ok(Json(ProcessKilled { success: true, process_id: process.id, signal, timestamp: wire::now() }))
}

/// The kept output of a background process; with `follow` as events, as `execCommand` sends them.
#[utoipa::path(
    get, path = "/v1/sandbox/{id}/processes/{process}/logs", operation_id = "getProcessLogs", tag = "processes",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("process" = String, Path, description = "Its name or pid"),
        ("follow" = Option<bool>, Query, description = "Events, until it ends"),
        ("encoding" = Option<String>, Query, description = "`base64`: for output that is no text"),
    ),
    responses(
        (status = 200, description = "Its output", content(
            (ProcessLogText = "application/json"),
            (String = "text/event-stream"),
        )),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 404, description = "There is no such process", body = ErrorBody),
        (status = 502, description = "It could not be read", body = ErrorBody),
        (status = 503, description = "A full house", body = ErrorBody),
    ),
)]
pub(crate) async fn get_process_logs(
    State(api): State<Api>,
    Id(id): Id,
    uri: Uri,
    query: Query,
) -> Result<Response, ApiError> {
    let failed = |error: SandboxError| Operation::Process("logs").failed(error);
    let follow = query.flag("follow", false)?;
    let sandbox = api.sandbox(&id).await?;
    let process = find(&sandbox, &uri).await?;
    if follow {
        return Ok(sse::exec(sandbox.follow_process(&process.id).await.map_err(failed)?));
    }
    let logs = sandbox.process_logs(&process.id).await.map_err(failed)?;
    Ok(Json(ProcessLogText::new(process.id, &logs, query.first("encoding").as_deref())?).into_response())
}
