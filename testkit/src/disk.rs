//! A small disk below a database: a test fills it, and PostgreSQL really finds no space left.
//!
//! The disk is a tmpfs, which needs root. It holds the tables and indexes of one database, not the write-ahead log: with a full
//! log PostgreSQL stops itself, which is the fault of a server that was killed.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::Stack;

/// The mounted disk; it is unmounted when dropped.
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Moves the database of a stack without processes onto a new disk of `megabytes`.
    pub async fn below(stack: &Stack, megabytes: u32) -> Result<Self> {
        let name = stack.database_url.rsplit('/').next().unwrap_or_default().to_owned();
        let disk = Self { dir: std::env::temp_dir().join(format!("{name}-disk")) };
        fs::create_dir_all(&disk.dir)?;
        let size = format!("size={megabytes}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&disk.dir).status()?;
        ensure!(mount.success(), "a small disk needs root: mounting a tmpfs failed");
        let space = disk.dir.join("tables");
        fs::create_dir(&space)?;
        let (owner, group) = account(stack).await?;
        chown(&space, Some(owner), Some(group))?;
        let (client, connection) = tokio_postgres::connect(&stack.servers.database_url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display())).await?;
        client.batch_execute(&format!("ALTER DATABASE {name} SET TABLESPACE small")).await?;
        Ok(disk)
    }

    /// Leaves no byte free.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = fs::File::create(self.ballast())?;
        let block = vec![0; 64 * 1024];
        // The last write fails: that is the aim.
        while ballast.write_all(&block).is_ok() {}
        Ok(())
    }

    /// Gives the space back.
    pub fn clear(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("the disk is not filled")
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // PostgreSQL may still hold files there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The account that PostgreSQL runs as: the owner of its data.
async fn account(stack: &Stack) -> Result<(u32, u32)> {
    let data: String = stack.sql().await?.query_one("SHOW data_directory", &[]).await?.get(0);
    let owner = fs::metadata(Path::new(&data))?;
    Ok((owner.uid(), owner.gid()))
}
