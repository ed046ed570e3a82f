//! Network namespaces: each process runs as if on a machine of its own, whose packets can be dropped.
//!
//! A node reaches the servers under one address of the host, and nothing else. Needs root and iproute2 (`ip`).

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// No interface has this hardware address, so every receiver drops a packet to it.
const UNUSED_ADDRESS: &str = "02:00:00:00:00:99";

/// The nodes of one run. Dropping it removes the namespaces, their links and the address of the servers.
pub struct Network {
    /// Keeps the names of runs side by side apart.
    id: u32,
    nodes: BTreeMap<String, Node>,
}

/// One machine of the network.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its address; requests that it makes come from there.
    pub address: Ipv4Addr,
    gateway: Ipv4Addr,
    namespace: String,
    link: String,
}

impl Network {
    /// A network without nodes.
    pub fn new() -> Result<Self> {
        let network = Self { id: std::process::id(), nodes: BTreeMap::new() };
        ip(&["address", "add", &format!("{}/32", network.server()), "dev", "lo"])
            .context("a network needs root and iproute2")?;
        Ok(network)
    }

    /// The address under which the nodes find the servers.
    pub fn server(&self) -> Ipv4Addr {
        self.subnet(0, 1)
    }

    /// The node of that name; made on first use.
    pub fn node(&mut self, name: &str) -> Result<Node> {
        if let Some(node) = self.nodes.get(name) {
            return Ok(node.clone());
        }
        let number = u8::try_from(self.nodes.len() + 1)?;
        let node = Node {
            address: self.subnet(number, 2),
            gateway: self.subnet(number, 1),
            namespace: format!("posthaste-{}-{number}", self.id),
            link: format!("ph{}n{number}", self.id),
        };
        // Known before it is made, so that a failure half-way leaves nothing behind.
        self.nodes.insert(name.to_owned(), node.clone());
        node.make()?;
        Ok(node)
    }

    fn subnet(&self, number: u8, host: u8) -> Ipv4Addr {
        let [.., low] = self.id.to_be_bytes();
        Ipv4Addr::new(10, low, number, host)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It may be gone already.
        for node in self.nodes.values() {
            let _ = ip(&["netns", "delete", &node.namespace]);
            let _ = ip(&["link", "delete", &node.link]);
        }
        let _ = ip(&["address", "delete", &format!("{}/32", self.server()), "dev", "lo"]);
    }
}

impl Node {
    /// A command that runs `program` on this node, as the same process.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// From now on every packet to and from the node is dropped. No connection is closed.
    pub fn cut(&self) -> Result<()> {
        let (there, back) = (self.address.to_string(), self.gateway.to_string());
        ip(&["neighbour", "replace", &there, "lladdr", UNUSED_ADDRESS, "dev", &self.link, "nud", "permanent"])?;
        self.ip(&["neighbour", "replace", &back, "lladdr", UNUSED_ADDRESS, "dev", "eth0", "nud", "permanent"])
    }

    /// Packets pass again.
    pub fn heal(&self) -> Result<()> {
        ip(&["neighbour", "delete", &self.address.to_string(), "dev", &self.link])?;
        self.ip(&["neighbour", "delete", &self.gateway.to_string(), "dev", "eth0"])
    }

    fn make(&self) -> Result<()> {
        let (near, far) = (format!("{}/24", self.gateway), format!("{}/24", self.address));
        ip(&["netns", "add", &self.namespace])?;
        ip(&["link", "add", &self.link, "type", "veth", "peer", "name", "eth0", "netns", &self.namespace])?;
        ip(&["address", "add", &near, "dev", &self.link])?;
        ip(&["link", "set", &self.link, "up"])?;
        self.ip(&["address", "add", &far, "dev", "eth0"])?;
        self.ip(&["link", "set", "eth0", "up"])?;
        self.ip(&["link", "set", "lo", "up"])?;
        self.ip(&["route", "add", "default", "via", &self.gateway.to_string()])
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.namespace], arguments].concat())
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("`ip` of iproute2 does not run")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
