//! stub
use super::driver::Qcow2;
use crate::block::Result;
use crate::block::graph::driver::{Check, CheckReport};
use async_trait::async_trait;
#[async_trait(?Send)]
impl Check for Qcow2 {
    async fn check(&self) -> Result<CheckReport> {
        Ok(CheckReport::default())
    }
}
