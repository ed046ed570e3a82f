-- Whether any delivery went to exactly this recipient.
SELECT EXISTS (SELECT 1 FROM deliveries d WHERE d.recipient_hash = ANY (:hashes::bytea[])) AS found
