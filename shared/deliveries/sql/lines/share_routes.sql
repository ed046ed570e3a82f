SELECT DISTINCT route FROM lines WHERE is_waiting AND kind = 'share'
