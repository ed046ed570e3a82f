-- Whether something was ever sent exactly there.
SELECT EXISTS (SELECT 1 FROM deliveries d WHERE d.recipient_hash = ANY (:hashes::bytea[])) AS found
