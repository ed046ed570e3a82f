WITH gone AS (DELETE FROM templates WHERE tenant_id = :tenant AND id = :id RETURNING id
), versions AS (DELETE FROM template_versions v USING gone WHERE v.template_id = gone.id)
SELECT count(*) FROM gone
