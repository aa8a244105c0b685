//! What happens in the daemon, as a stream.

use axum::extract::State;
use axum::response::Response;
use futures_util::stream;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use crate::error::ApiError;
use crate::sse;
use crate::state::Api;
use crate::wire::{ErrorBody, EventEntry};

/// What happens from now on.
///
/// Each event has its kind as its name; `lagged` (`{"missed":n}`) says that the reader was too slow.
#[utoipa::path(
    get, path = "/v1/events", operation_id = "streamEvents", tag = "service",
    responses(
        (status = 200, description = "Events", body = EventEntry, content_type = "text/event-stream"),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn stream_events(State(api): State<Api>) -> Result<Response, ApiError> {
    let events = api.daemon()?.events();
    Ok(sse::response(stream::unfold(events, |mut events| async move {
        let bytes = match events.recv().await {
            Ok(event) => sse::json_event(&event.kind.clone(), &EventEntry::from(event)),
            Err(RecvError::Lagged(missed)) => sse::json_event("lagged", &json!({ "missed": missed })),
            Err(RecvError::Closed) => return None,
        };
        Some((bytes, events))
    })))
}
