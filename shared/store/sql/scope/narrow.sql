-- Lasts until the end of the transaction.
SELECT set_config('posthaste.tenant', :tenant, true)
