//! Whether all is well.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::error::{self, ApiError};
use crate::state::Api;
use crate::wire::Health;

/// Whether the daemon is well. Needs no key.
#[utoipa::path(
    get, path = "/health", operation_id = "healthCheck", tag = "service", security(()),
    responses(
        (status = 200, description = "All is well", body = Health),
        (status = 503, description = "Something is not", body = Health),
    ),
)]
pub(crate) async fn health_check(State(api): State<Api>) -> Result<Response, ApiError> {
    let errors = api.daemon()?.problems().await;
    let status = error::health_status(&errors);
    Ok((status, Json(Health { ok: errors.is_empty(), errors })).into_response())
}
