DELETE FROM seal_check WHERE fingerprint <> :fingerprint
