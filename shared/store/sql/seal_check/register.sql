INSERT INTO seal_check (fingerprint, sealed) VALUES (:fingerprint, :sealed) ON CONFLICT DO NOTHING
