//! Tunnels: their form is checked, and there is no provider.

use axum::body::Body;
use http::{StatusCode, Uri};

use crate::error::{ApiError, NO_CONTENT};
use crate::extract::{self, Id};
use crate::wire::{self, ErrorBody, TunnelRequest};

/// Would open a tunnel to a port; there is no provider.
#[utoipa::path(
    post, path = "/v1/sandbox/{id}/tunnel/{port}", operation_id = "createTunnel", tag = "tunnels",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("port" = u16, Path, description = "1024 to 65535, not 3000"),
    ),
    request_body = Option<TunnelRequest>,
    responses(
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
        (status = 502, description = "There is no tunnel provider", body = ErrorBody),
    ),
)]
pub(crate) async fn create_tunnel(Id(_id): Id, uri: Uri, body: Body) -> Result<StatusCode, ApiError> {
    TunnelRequest::check_port(&extract::segment(&uri, 5))?;
    let members = wire::optional_object(&extract::small_body(body).await?)?;
    TunnelRequest::check(&members)?;
    Err(ApiError::NoTunnels)
}

/// Ends a tunnel, if there is one.
#[utoipa::path(
    delete, path = "/v1/sandbox/{id}/tunnel/{port}", operation_id = "deleteTunnel", tag = "tunnels",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("port" = u16, Path, description = "1024 to 65535, not 3000"),
    ),
    responses(
        (status = 204, description = "There is none now"),
        (status = 400, description = "The request is wrong", body = ErrorBody),
        (status = 401, description = "No key, or another", body = ErrorBody),
    ),
)]
pub(crate) async fn delete_tunnel(Id(_id): Id, uri: Uri) -> Result<StatusCode, ApiError> {
    TunnelRequest::check_port(&extract::segment(&uri, 5))?;
    Ok(NO_CONTENT)
}
