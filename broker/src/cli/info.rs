//! `info`: a server at a glance.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    Ask,
    connect::Connection,
    duration::short,
    failure::Failure,
    options,
    output::{Output, notice},
    records::{self, TypeJson},
    types,
};

/// Calls from which the latency is taken.
const LATENCY_CALLS: usize = 5;

/// Show versions, record types with their counts, options, and how fast the server answers.
#[derive(Debug, clap::Args)]
pub struct Info {
    /// Do not count records (some servers read all of them for that)
    #[arg(long)]
    pub no_count: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InfoJson {
    address: String,
    // A string, as it is random over all 64 bits and many programs read numbers as floats.
    server_version: String,
    earliest_record_version: u64,
    latest_record_version: u64,
    latency_micros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<CheckpointJson>,
    types: Vec<TypeJson>,
    types_with_options: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckpointJson {
    server_version: String,
    record_version: u64,
    is_leader: bool,
}

impl Ask for Info {
    async fn run(self, connection: &Connection, output: &mut Output) -> Result<(), Failure> {
        let info = self.gather(connection).await?;
        if !output.for_people() {
            return output.value(&info);
        }
        output.line(&format!("server           {}", info.address))?;
        output.line(&format!("server version   {}", info.server_version))?;
        output.line(&format!("record versions  {} to {}", info.earliest_record_version, info.latest_record_version))?;
        if let Some(checkpoint) = &info.checkpoint {
            let role = if checkpoint.is_leader { "leader" } else { "not a leader, or alone" };
            let versions = format!("{} / {}", checkpoint.server_version, checkpoint.record_version);
            output.line(&format!("checkpoint       {versions} ({role})"))?;
        }
        output.line(&format!("latency          {}", short(Duration::from_micros(info.latency_micros))))?;
        output.line(&format!("types            {} ({} with options)\n", info.types.len(), info.types_with_options))?;
        records::print_types(output, info.types)?;
        notice("try: databroker options list, databroker query TYPE, databroker watch");
        Ok(())
    }
}

impl Info {
    async fn gather(&self, connection: &Connection) -> Result<InfoJson, Failure> {
        let mut types = Vec::new();
        for r#type in types::list(connection).await? {
            let records = match self.no_count {
                false => Some(records::count(connection, &r#type).await?),
                true => None,
            };
            types.push(TypeJson { r#type, records });
        }
        let mut latency = Duration::MAX;
        for _ in 0..LATENCY_CALLS {
            let start = Instant::now();
            connection.call(connection.records().server_info(())).await?;
            latency = latency.min(start.elapsed());
        }
        let versions = connection.call(connection.records().server_info(())).await?;
        Ok(InfoJson {
            address: connection.address().to_string(),
            server_version: versions.server_version.to_string(),
            earliest_record_version: versions.earliest_record_version,
            latest_record_version: versions.latest_record_version,
            latency_micros: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
            checkpoint: checkpoint(connection).await,
            types,
            types_with_options: options::all(connection).await?.len(),
        })
    }
}

/// None if the server has none to show: not all have this service.
async fn checkpoint(connection: &Connection) -> Option<CheckpointJson> {
    let request = databroker_proto::databroker::GetCheckpointRequest {};
    let response = connection.call(connection.checkpoints().get_checkpoint(request)).await.ok()?;
    let checkpoint = response.checkpoint.unwrap_or_default();
    Some(CheckpointJson {
        server_version: checkpoint.server_version.to_string(),
        record_version: checkpoint.record_version,
        is_leader: response.is_leader,
    })
}
