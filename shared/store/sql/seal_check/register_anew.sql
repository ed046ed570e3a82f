INSERT INTO seal_check (fingerprint, sealed) VALUES (:fingerprint, :sealed)
ON CONFLICT (fingerprint) DO UPDATE SET sealed = excluded.sealed
